"""A line for each request that was answered."""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from isthmus.router.access import Access
from isthmus.router.api_keys import make_key
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import JobError
from isthmus.tests.router.edge import ask, saying, served
from isthmus.tests.router.edge import run as run_async

LOGGER = "isthmus.router.request_log"


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record)["facts"] for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_is_told_at_info(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    ask(saying("hi"), "POST", "/v1/completions", json={"prompt": "abc", "n": 2, "stream": stream})
    [facts] = logged(caplog)
    assert 0 < facts.pop("duration_s") < 60
    assert facts == {
        "method": "POST", "path": "/v1/completions", "status": 200, "outcome": "stop,stop", "stream": stream,
        "prompt_tokens": 3, "cached_tokens": 0, "tokens": 6, "queue_s": 0, "prefill_s": 0, "transfer_s": 0,
        "decode_s": 0,
    }  # fmt: skip


def test_what_generates_nothing_is_told_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    ask(saying("hi"), "GET", "/health")
    assert logged(caplog) == []
    caplog.set_level(logging.DEBUG, LOGGER)
    ask(saying("hi"), "GET", "/there/is%0Anothing")
    [facts] = logged(caplog)
    assert (facts["path"], facts["status"]) == ("/there/is%0Anothing", 404), "on one line"


def test_whose_key_it_was(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    async def run() -> None:
        app = create_app(saying("hi"), served(), Access([make_key("secret", "alice")]))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {"Authorization": "Bearer secret"}
            assert (await client.post("/v1/completions", json={"prompt": "a"}, headers=headers)).status_code == 200

    run_async(run())
    [facts] = logged(caplog)
    assert facts["key"] == "alice"
    assert "; key alice" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_what_failed_says_so(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    def script(job: object, choice: int) -> Any:
        yield 65
        raise JobError(500, "broken")

    caplog.set_level(logging.INFO, LOGGER)
    ask(FakeCore(script), "POST", "/v1/completions", json={"prompt": "abc", "stream": stream})
    [facts] = logged(caplog)
    assert (facts["status"], facts["outcome"], facts["tokens"]) == (200 if stream else 500, "error", 1)


def test_a_client_that_leaves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    core = FakeCore(step_s=30.0)
    body = b'{"prompt": "abc", "max_tokens": 9}'

    async def run() -> None:
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            if (message := next(messages, None)) is not None:
                return message
            while not core.streams:
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("nobody is there")

        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions",
            "query_string": b"", "root_path": "", "headers": [], "scheme": "http", "http_version": "1.1",
            "client": None, "server": ("t", 1),
        }  # fmt: skip
        await create_app(core, served())(scope, receive, send)

    run_async(run())
    [facts] = logged(caplog)
    assert (facts["status"], facts["outcome"]) == (0, "disconnected")
