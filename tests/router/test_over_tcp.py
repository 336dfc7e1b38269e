"""The application behind uvicorn, on a port of its own."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest
import uvicorn
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import saying, served

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@contextmanager
def serving(core: FakeCore) -> Iterator[str]:
    """The base URL, while it serves."""
    config = uvicorn.Config(create_app(core, served()), log_level="warning", access_log=False, ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_openais_client_streams_and_its_close_frees_the_request():
    core = FakeCore(step_s=0.002)
    with serving(core) as url, openai.OpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0) as client:
        stream = client.chat.completions.create(**CHAT, max_tokens=100, stream=True)
        texts = [next(iter(stream)).choices[0].delta.content for _ in range(4)]
        assert core.num_running == 1
        stream.close()
        until(lambda: core.num_running == 0)
    assert texts[0] == ""
    assert all(texts[1:])


def test_a_client_that_gives_up_on_an_unstreamed_answer_frees_the_request():
    core = FakeCore(step_s=60)
    with serving(core) as url, httpx.Client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{url}/v1/chat/completions", json=CHAT, timeout=0.1)
        until(lambda: core.streams[0].cancelled.is_set())
    assert core.num_running == 0


def test_answers_over_one_kept_connection():
    with serving(saying("Hello.")) as url, httpx.Client(base_url=url) as client:
        for path, body in (("/v1/chat/completions", CHAT), ("/api/v1/generate", {"prompt": "x"})) * 2:
            assert "Hello." in client.post(path, json=body).text
        assert client.post("/v1/completions", json={"prompt": ""}).status_code == 400
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/ping", 200), ("/", 302)])
def test_balancers_may_ask_without_a_body(path, status):
    with serving(FakeCore()) as url, httpx.Client(base_url=url) as client:
        head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (status, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert head.headers.get("content-type") == whole.headers.get("content-type")


def test_balancers_are_told_without_a_body_that_no_worker_is_ready():
    core = FakeCore()
    core.ready = False
    with serving(core) as url:
        assert httpx.head(f"{url}/health").status_code == 503
