"""Ten thousand bodies that no client should send, over every POST route: each has an answer, and none is a 500."""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import saying, served
from isthmus.tests.router.test_access import ROUTES

NUM_BODIES = 10_000
POSTS = [path for method, path in ROUTES if method == "POST"]
VALID: dict[str, Any] = {
    "prompt": "hi",
    "messages": [{"role": "user", "content": "hi"}],
    "input": ["hi", "you"],
    "text_1": "hi",
    "text_2": ["you", "me"],
    "query": "hi",
    "documents": ["you", {"text": "me"}],
    "genkey": "KCPP1234",
    "max_tokens": 3,
    "model": "tiny",
    "stream": True,
    "n": 1,
}
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, "", "x", "0", "null", "\0",
    "é" * 9,
    "\ud83d\ude00", "\ude00", '["\\ude00"]', '{"a": "\\ude00"}', "[1, 2", '{"a": 1}', "a,b", "{{", "<|im_end|>", [], {},
]  # fmt: skip


def known_fields() -> dict[str, list[str]]:
    """By POST route, from its description."""
    found = {}
    for path, methods in create_app(FakeCore(), served()).openapi()["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        found[path] = sorted(body.get("schema", {}).get("properties", {}))
    return found


class Bodies:
    """Seeded. A body is a valid one with fields put in, taken out or replaced; some of them then lose bytes."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._fields = known_fields()

    def value(self, depth: int = 0) -> Any:
        kind = self._random.random()
        if depth > 3 or kind < 0.7:
            return self._random.choice(SCALARS)
        if kind < 0.85:
            return [self.value(depth + 1) for _ in range(self._random.randrange(4))]
        names = [*VALID, "role", "content", "type", "text", "json", "", "0"]
        return {self._random.choice(names): self.value(depth + 1) for _ in range(self._random.randrange(4))}

    def body(self, path: str) -> bytes:
        fields = self._fields.get(path) or list(VALID)
        wanted = [name for name in VALID if name in fields and self._random.random() < 0.9]
        content = {name: VALID[name] for name in wanted}
        for _ in range(self._random.randrange(1, 4)):
            content[self._random.choice(fields)] = self.value()
        raw = json.dumps(self.value() if self._random.random() < 0.05 else content).encode()
        return self.damaged(raw) if self._random.random() < 0.3 else raw

    def damaged(self, raw: bytes) -> bytes:
        where = self._random.randrange(len(raw))
        match self._random.randrange(4):
            case 0:
                return raw[:where]
            case 1:
                return raw[:where] + self._random.randbytes(3) + raw[where:]
            case 2:
                return raw[:where] + raw[where + 1 :]
            case _:
                return raw[where:] + raw

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for number in range(NUM_BODIES):
            path = POSTS[number % len(POSTS)]
            yield path, self.body(path)


async def post(app: Any, path: str, raw: bytes) -> int:
    """The status, without a client in between: it would take most of the time."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": ("c", 1),
        "server": ("s", 80), "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    waiting.put_nowait({"type": "http.request", "body": raw, "more_body": False})
    statuses: list[int] = []
    ended: list[bool] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        else:
            ended.append(not message.get("more_body", False))

    await app(scope, waiting.get, send)
    assert len(statuses) == 1
    assert ended[-1]
    return statuses[0]


def test_no_body_is_a_500() -> None:
    app = create_app(saying("ok"), served())

    async def run() -> dict[int, int]:
        counts: dict[int, int] = {}
        for path, raw in Bodies(7):
            status = await post(app, path, raw)
            assert status in (200, 400, 403, 404), (path, raw, status)
            counts[status] = counts.get(status, 0) + 1
        return counts

    counts = asyncio.run(run())
    assert sum(counts.values()) == NUM_BODIES
    assert counts[400] > NUM_BODIES / 4
    assert counts[200] > NUM_BODIES / 100, "so that not all fail at the first check"
