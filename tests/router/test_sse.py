"""The ASGI side of answers: when the status is sent, and what a disconnect does."""

import asyncio
import json
from typing import Any

import pytest
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import run, served

ROUTES: list[tuple[str, dict]] = [
    ("/v1/completions", {"prompt": "ab"}),
    ("/v1/completions", {"prompt": ["ab", "cd"], "n": 2}),
    ("/v1/completions", {"prompt": "ab", "stream": True}),
    ("/v1/completions", {"prompt": ["ab", "cd"], "stream": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
    ("/api/v1/generate", {"prompt": "ab"}),
    ("/api/extra/generate/stream", {"prompt": "ab"}),
]


class Connection:
    """One request, a message at a time."""

    def __init__(self, core: FakeCore, path: str, body: Any):
        self.sent: list[dict[str, Any]] = []
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self._arrived = asyncio.Event()
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
            "scheme": "http",
            "http_version": "1.1",
        }
        self.ended = asyncio.ensure_future(create_app(core, served())(scope, self._inbox.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self._arrived.set()

    async def until_sent(self, count: int) -> None:
        while len(self.sent) < count:
            self._arrived.clear()
            await asyncio.wait_for(self._arrived.wait(), 5)

    async def disconnect(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(self.ended, 5)


async def until_submitted(core: FakeCore, count: int) -> None:
    while len(core.streams) < count:
        await asyncio.sleep(0)


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_a_disconnect_before_the_first_token_frees_everything_and_sends_nothing(path, body):
    core = FakeCore(step_s=60)

    async def go() -> list[dict[str, Any]]:
        connection = Connection(core, path, body)
        await until_submitted(core, len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1)
        assert core.num_running > 0
        await connection.disconnect()
        return connection.sent

    assert run(go()) == []
    assert core.num_running == 0
    assert all(stream.cancelled.is_set() for stream in core.streams)


@pytest.mark.parametrize(("path", "body"), [route for route in ROUTES if "n" not in route[1]])
def test_a_disconnect_in_the_middle_frees_everything(path, body):
    core = FakeCore(step_s=0.002)
    streams = body.get("stream") or path.endswith("stream")

    async def go() -> None:
        connection = Connection(core, path, {**body, "max_tokens": 100})
        await until_submitted(core, 1)
        if streams:
            await connection.until_sent(4)
        else:
            await asyncio.sleep(0.02)
        await connection.disconnect()
        assert connection.sent == [] or connection.sent[-1]["more_body"]

    run(go())
    assert core.num_running == 0


def test_no_status_before_the_first_token():
    core = FakeCore(step_s=0.05)

    async def go() -> None:
        connection = Connection(core, "/v1/completions", {"prompt": "ab", "stream": True, "max_tokens": 2})
        await until_submitted(core, 1)
        await asyncio.sleep(0.01)
        assert connection.sent == []
        await asyncio.wait_for(connection.ended, 5)
        assert [message["type"] for message in connection.sent] == ["http.response.start"] + ["http.response.body"] * 3
        assert [message.get("more_body") for message in connection.sent] == [None, True, True, False]

    run(go())


def test_a_client_that_leaves_while_sending_its_body_is_no_error():
    core = FakeCore()

    async def left() -> list[int]:
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
        await create_app(core, served())({**scope, "client": None, "server": ("t", 1), "scheme": "http"}, receive, send)
        return statuses

    assert run(left())[0] == 499
    assert core.streams == []
