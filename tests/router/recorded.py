"""What a client sends, call by call, and what it must get; and the bytes of both, to be compared with a recording."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
from isthmus.router import openai_routes, request_id, responses
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import http_client, say

JSON = {"Content-Type": "application/json"}
FIXED = {"system_fingerprint": "isthmus"}


@dataclass(frozen=True)
class Call:
    """`expected`: the exact bytes of an answer, its exact JSON, or (a type for each field) its shape. The type bytes:
    whatever the recording has. `varies`: the answer tells times, and is not recorded."""

    method: str
    path: str
    expected: Any
    body: Any = None
    headers: dict[str, str] = field(default_factory=lambda: JSON)
    status: int = 200
    varies: bool = False


@dataclass(frozen=True)
class Exchange:
    call: Call
    reply: httpx.Response

    @property
    def is_as_expected(self) -> bool:
        return self.reply.status_code == self.call.status and self._fits

    @property
    def _fits(self) -> bool:
        expected = self.call.expected
        if expected is bytes:
            return True
        return self.reply.content == expected if isinstance(expected, bytes) else matches(self.reply.json(), expected)

    @property
    def told(self) -> str:
        """As recordings have it."""
        sent = [f"> {self.call.method} {self.call.path}"]
        sent += [] if self.call.body is None else [f"> {json.dumps(self.call.body, ensure_ascii=False)}"]
        got = f"< {self.reply.status_code} {self.reply.headers['content-type']}"
        return "\n".join([*sent, got, "(varies)" if self.call.varies else self.reply.content.decode(), ""])


def replay(calls: Sequence[Call], said: str) -> list[str]:
    """What is wrong with the answers, if anything, when the model says `said`."""
    return [exchange.told for exchange in exchanges(calls, FakeCore(say(said))) if not exchange.is_as_expected]


def exchanges(calls: Sequence[Call], core: FakeCore, **served: Any) -> list[Exchange]:
    """With the same ids and times in every run."""
    with fixed_ids_and_clock():
        return asyncio.run(_exchanges(calls, core, {**FIXED, **served}))


async def _exchanges(calls: Sequence[Call], core: FakeCore, served: dict[str, Any]) -> list[Exchange]:
    async with http_client(core, **served) as client:
        return [Exchange(call, await _reply(client, call)) for call in calls]


async def _reply(client: httpx.AsyncClient, call: Call) -> httpx.Response:
    body = {} if call.body is None else {"json": call.body}
    return await client.request(call.method, call.path, headers=call.headers, **body)


@contextmanager
def fixed_ids_and_clock() -> Iterator[None]:
    """Requests are called 1, 2, …, and all come in the same second."""
    numbers = count(1)
    clock = SimpleNamespace(time=lambda: 1_700_000_000.0)
    with ExitStack() as patches:
        patches.enter_context(patch.object(request_id, "clean_request_id", lambda given: str(next(numbers))))
        for routes in (openai_routes, responses):
            patches.enter_context(patch.object(routes, "time", clock))
        yield


def matches(found: Any, expected: Any) -> bool:
    """Types stand for any value of theirs; a dict has exactly these keys, a list exactly these items."""
    if isinstance(expected, type):
        return isinstance(found, expected) and (expected is bool or not isinstance(found, bool))
    if isinstance(expected, dict):
        same = isinstance(found, dict) and found.keys() == expected.keys()
        return same and all(matches(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(matches, found, expected))
    return type(found) is type(expected) and found == expected
