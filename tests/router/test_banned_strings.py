"""banned_strings on every route: how they may be written, and what is refused."""

from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import ask, saying
from isthmus.wire.sampling import MAX_BANNED_CHARS

ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "hi", "max_tokens": 3}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}),
    ("/api/v1/generate", {"prompt": "hi", "max_length": 3}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("name", ["banned_strings", "banned_tokens"])
def test_they_reach_the_job(path: str, body: dict[str, Any], name: str) -> None:
    core = saying("yes")
    assert ask(core, "POST", path, json={**body, name: ["shivers down", " é"]}).status_code == 200
    assert core.streams[-1].job.params.banned_strings == ("shivers down", " é")


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("name", ["banned_strings", "banned_tokens"])
@pytest.mark.parametrize(
    ("value", "param"),
    [
        (5, ""),
        ("shivers", ""),
        ({"a": 1}, ""),
        ([5], "[0]"),
        (["a", ""], "[1]"),
        (["a" * 1025], "[0]"),
        (["a"] * 1025, ""),
        (["a" * 1024] * (MAX_BANNED_CHARS // 1024) + ["b"], ""),
    ],
    ids=["number", "string", "object", "no string", "empty", "long", "many", "long in all"],
)
def test_what_is_refused_names_the_field(path: str, body: dict[str, Any], name: str, value: Any, param: str) -> None:
    core = FakeCore()
    reply = ask(core, "POST", path, json={**body, name: value})
    assert reply.status_code == 400
    error = reply.json()["detail" if path.startswith("/api") else "error"]
    assert name + param in str(error)
    assert not core.streams
