"""`isthmus chat` against a stub server in this process."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from isthmus.launch.chat import ChatServer, Conversation, ServerError, answer, chat, converse, usage_line
from isthmus.launch.config import ChatConfig, SamplingOptions, ServerOptions

USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "timings": {"queue_s": 0.01, "prefill_s": 0.2, "transfer_s": 0.03, "decode_s": 0.5, "num_cached_tokens": 0},
}
USAGE_LINE = "[5 + 3 tokens · 4.0 tok/s · queue 0.01 s, prefill 0.20 s, transfer 0.03 s, decode 0.50 s]"


class Stub(ThreadingHTTPServer):
    """Answers every chat with `events`; keeps the bodies it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.bodies: list[dict[str, Any]] = []
        self.events: list[Any] = []
        self.hang = False
        self.let_go = threading.Event()
        self.status = 200
        self.url = f"http://127.0.0.1:{self.server_port}"

    def says(self, *pieces: str) -> None:
        deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]
        self.events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        self.events += [{"choices": [], "usage": USAGE}, "[DONE]"]


class StubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode())

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.status != 200:
            self._send(json.dumps({"error": {"message": "no room"}}).encode())
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.server.events:
            data = event if isinstance(event, str) else json.dumps(event)
            self._chunk(f"data: {data}\n\n".encode())
        if self.server.hang:
            self.server.let_go.wait(10)
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send(self, data: bytes) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.let_go.set()
    server.shutdown()
    thread.join()
    server.server_close()


def talk(stub: Stub, *lines: str, **sampling: Any) -> str:
    out = io.StringIO()
    converse(ChatServer(stub.url), Conversation("m", SamplingOptions(**sampling)), iter(lines), out)
    return out.getvalue()


def test_an_answer_is_printed_as_it_comes_and_its_cost_after_it(stub: Stub) -> None:
    stub.says("An isth", "mus – ", "land")
    assert talk(stub, "What?") == f"An isthmus – land\n{USAGE_LINE}\n"


def test_the_conversation_goes_along_until_it_is_reset(stub: Stub) -> None:
    stub.says("yes")
    talk(stub, "one", "", "two", "/reset", "three", "/exit", "four", system="Be brief.", temperature=0.5, seed=7)
    system, one, two, three = ({"role": "system", "content": "Be brief."}, *map(user, ("one", "two", "three")))
    said = {"role": "assistant", "content": "yes"}
    assert [body["messages"] for body in stub.bodies] == [[system, one], [system, one, said, two], [system, three]]
    assert {key: stub.bodies[0][key] for key in ("model", "temperature", "seed", "stream", "stream_options")} == {
        "model": "m",
        "temperature": 0.5,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert not {"system", "top_p", "max_tokens"} & stub.bodies[0].keys()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_refusal_is_shown_and_takes_the_question_back(stub: Stub) -> None:
    stub.status = 503
    conversation = Conversation("m", SamplingOptions())
    out = io.StringIO()
    converse(ChatServer(stub.url), conversation, iter(["hello"]), out)
    assert out.getvalue() == "[no room (HTTP 503)]\n"
    assert conversation.messages == []


def test_an_error_event_and_a_silent_end_are_shown(stub: Stub) -> None:
    stub.says("half")
    stub.events[2:] = [{"error": {"message": "worker lost"}}]
    assert talk(stub, "hello") == "half[worker lost]\n"
    stub.events[2:] = []
    assert talk(stub, "hello") == "half[the server ended the answer in the middle]\n"


class StopsAfter(io.StringIO):
    """Ctrl-C arrives when `text` has been printed."""

    def __init__(self, text: str):
        super().__init__()
        self._text = text

    def write(self, text: str) -> int:
        written = super().write(text)
        if text == self._text:
            raise KeyboardInterrupt
        return written


def test_ctrl_c_stops_the_answer_and_keeps_what_came(stub: Stub) -> None:
    stub.says("first", "second")
    stub.hang = True
    conversation = Conversation("m", SamplingOptions())
    out = StopsAfter("first")
    answer(ChatServer(stub.url), conversation, "hello", out)
    assert out.getvalue() == "first [stopped]\n"
    assert conversation.messages == [user("hello"), {"role": "assistant", "content": "first"}]


def test_an_unknown_command_is_not_sent(stub: Stub) -> None:
    assert talk(stub, "/quit now").startswith("[no command /quit: ")
    assert stub.bodies == []


def test_the_first_model_is_taken_and_input_ends_it(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.says("hi")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert chat(ChatConfig(ServerOptions(stub.url), SamplingOptions())) == 0
    assert capsys.readouterr().out.startswith(f"first at {stub.url}. /reset")
    assert stub.bodies[0]["model"] == "first"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1", "no server answers at http://127.0.0.1:1"),
        ("ftp://x", "ftp://x is no address of a server"),
    ],
)
def test_no_server_is_one_sentence(url: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(ChatConfig(ServerOptions(url), SamplingOptions())) == 1
    assert capsys.readouterr().err.startswith(f"isthmus chat: {said}")


def test_an_address_may_end_in_v1(stub: Stub) -> None:
    assert ChatServer(f"{stub.url}/v1").models() == ["first", "second"]


def test_bad_addresses_and_missing_timings() -> None:
    with pytest.raises(ServerError, match="no address"):
        ChatServer("http://")
    assert usage_line({"prompt_tokens": 1, "completion_tokens": 2}) == "[1 + 2 tokens]"
