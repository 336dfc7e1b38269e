"""`isthmus chat`: a conversation with a running server, in the terminal."""

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Any, TextIO
from urllib.parse import urlsplit

from .access import environment_keys
from .config import ChatConfig, SamplingOptions

CONNECT_TIMEOUT_S = 600.0
"""Also bounds the silence before a token: a request may wait in the queue."""
HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C stops an answer."


class ServerError(RuntimeError):
    """The server cannot be reached, or refused; the message is its own."""


class ChatServer:
    """A server with OpenAI's chat API at `url`."""

    def __init__(self, url: str, api_key: str | None = None):
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url} is no address of a server: it should look like http://127.0.0.1:2242")
        self.url = url
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")

    def models(self) -> list[str]:
        with closing(self._connect()) as connection:
            answer = json.load(self._request(connection, "GET", "/v1/models"))
        return [str(model["id"]) for model in answer["data"]]

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of one answer. Closing the iterator early closes the connection, which ends the answer."""
        with closing(self._connect()) as connection:
            response = self._request(connection, "POST", "/v1/chat/completions", body)
            for line in self._lines(response):
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    response.read()  # to the end: hanging up now would look like a client that had enough
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise ServerError(chunk["error"]["message"])
                yield chunk
        raise ServerError("the server ended the answer in the middle")

    def _connect(self) -> http.client.HTTPConnection:
        return self._make(self._host, self._port, timeout=CONNECT_TIMEOUT_S)

    def _request(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: dict[str, Any] | None = None
    ) -> http.client.HTTPResponse:
        payload = None if body is None else json.dumps(body)
        try:
            connection.request(method, self._prefix + path, payload, self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"no server answers at {self.url}: {error or type(error).__name__}") from error
        if response.status != 200:
            raise ServerError(_refusal(response))
        return response

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            yield from response
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"the connection broke: {error or type(error).__name__}") from error


def _refusal(response: http.client.HTTPResponse) -> str:
    text = response.read(1 << 16).decode(errors="replace")
    try:
        return f"{json.loads(text)['error']['message']} (HTTP {response.status})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status}: {text[:500]}"


class Conversation:
    """The messages so far, and how the next answer is asked for."""

    def __init__(self, model: str, sampling: SamplingOptions):
        self._model = model
        self._system = sampling.system
        self._sampling = {k: v for k, v in asdict(sampling).items() if k != "system" and v is not None}
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def ask(self, text: str) -> dict[str, Any]:
        """The body of the request for an answer to `text`."""
        self.messages.append({"role": "user", "content": text})
        return {
            "model": self._model,
            "messages": self.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling,
        }

    def answered(self, text: str) -> None:
        """What came; nothing at all takes the question back, so that roles keep alternating."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()


def usage_line(usage: dict[str, Any]) -> str:
    """`[42 + 17 tokens · 15.3 tok/s · queue 0.00 s, prefill 0.12 s, decode 1.05 s]`"""
    parts = [f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"]
    timings = usage.get("timings")
    if timings:
        decode_s = timings["decode_s"]
        if decode_s > 0 and usage["completion_tokens"] > 1:
            parts.append(f"{(usage['completion_tokens'] - 1) / decode_s:.1f} tok/s")
        stages = [f"{stage} {timings[stage + '_s']:.2f} s" for stage in ("queue", "prefill", "transfer", "decode")]
        parts.append(", ".join(stages))
    return f"[{' · '.join(parts)}]"


def answer(server: ChatServer, conversation: Conversation, text: str, out: TextIO) -> None:
    """Asks and prints the answer as it comes, then what it cost. Ctrl-C stops the answer and keeps what came."""
    said: list[str] = []
    usage: dict[str, Any] | None = None
    chunks = server.stream(conversation.ask(text))
    try:
        with closing(chunks):  # type: ignore[type-var]
            for chunk in chunks:
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", ()):
                    piece = choice["delta"].get("content") or ""
                    said.append(piece)
                    print(piece, end="", file=out, flush=True)
        print(file=out)
    except KeyboardInterrupt:
        print(" [stopped]", file=out)
    finally:
        conversation.answered("".join(said))
    if usage:
        print(usage_line(usage), file=out)


def converse(server: ChatServer, conversation: Conversation, lines: Iterator[str], out: TextIO) -> None:
    """One answer a line, until /exit or the end of `lines`."""
    for line in lines:
        match line.strip():
            case "":
                continue
            case "/exit":
                return
            case "/reset":
                conversation.reset()
                print("[the conversation starts anew]", file=out)
            case "/help":
                print(HELP, file=out)
            case text if text.startswith("/"):
                print(f"[no command {text.split()[0]}: {HELP}]", file=out)
            case text:
                try:
                    answer(server, conversation, text, out)
                except ServerError as error:
                    print(f"[{error}]", file=out)


def typed_lines() -> Iterator[str]:
    """What the user types; ends at Ctrl-D, or Ctrl-C at the prompt."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(prompt)
        except (EOFError, KeyboardInterrupt):
            print()
            return


def chat(config: ChatConfig) -> int:
    with suppress(ImportError):
        import readline  # noqa: F401  line editing for input()
    try:
        server = ChatServer(config.server.url, config.server.api_key or next(iter(environment_keys()), None))
        model = config.server.model or server.models()[0]
    except ServerError as error:
        print(f"isthmus chat: {error}", file=sys.stderr)
        return 1
    print(f"{model} at {server.url}. {HELP}")
    converse(server, Conversation(model, config.sampling), typed_lines(), sys.stdout)
    return 0
