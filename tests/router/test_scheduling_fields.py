"""priority and cache_salt, from a request's fields to its job and through the queue."""

from typing import Any

import pytest
from isthmus.tests.router.edge import ask, saying
from isthmus.wire.block_hash import salt_of

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["hi", "ho"]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/api/v1/generate": {"prompt": "hi", "max_length": 5},
    "/v1/embeddings": {"input": ["hi", "ho"]},
    "/v1/score": {"text_1": "hi", "text_2": "ho"},
    "/v1/rerank": {"query": "hi", "documents": ["ho"]},
}


def jobs(path: str, more: dict[str, Any]) -> Any:
    core = saying("ok")
    reply = ask(core, "POST", path, json={**BODIES[path], **more})
    assert reply.status_code == 200, reply.text
    return [(stream.job.priority, stream.job.salt) for stream in core.streams]


@pytest.mark.parametrize("path", BODIES)
def test_they_reach_every_job(path):
    num_jobs = 2 if path in ("/v1/completions", "/v1/embeddings", "/v1/score", "/v1/rerank") else 1
    assert jobs(path, {"priority": -3, "cache_salt": "x"}) == [(-3, salt_of("x"))] * num_jobs
    for neutral in ({}, {"priority": None, "cache_salt": None}, {"priority": 0, "cache_salt": ""}):
        assert jobs(path, neutral) == [(0, b"")] * num_jobs


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"priority": 1.5}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"priority": "1"}, "priority"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"cache_salt": "x" * 4097}, "cache_salt"),
    ],
)
@pytest.mark.parametrize("path", BODIES)
def test_what_they_cannot_be_is_named(path, body, param):
    reply = ask(saying("ok"), "POST", path, json={**BODIES[path], **body})
    assert reply.status_code == 400
    error = reply.json().get("error") or {"message": reply.json()["detail"]["msg"]}
    assert error["message"].startswith(f"{param}: ")
