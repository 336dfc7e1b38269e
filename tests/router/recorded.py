"""What a client sends, call by call, and what it must get."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import http_client, say

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Call:
    """`expected`: the exact bytes of an answer, its exact JSON, or (a type for each field) its shape."""

    method: str
    path: str
    expected: Any
    body: Any = None
    headers: dict[str, str] = field(default_factory=lambda: JSON)
    status: int = 200


def replay(calls: Sequence[Call], said: str) -> list[str]:
    """What is wrong with the answers, if anything, when the model says `said`."""
    return asyncio.run(_replay(calls, said))


async def _replay(calls: Sequence[Call], said: str) -> list[str]:
    wrong = []
    async with http_client(FakeCore(say(said))) as client:
        for call in calls:
            body = {} if call.body is None else {"json": call.body}
            reply = await client.request(call.method, call.path, headers=call.headers, **body)
            raw = call.expected if isinstance(call.expected, bytes) else None
            found = reply.content if raw is not None else reply.json()
            fits = found == raw if raw is not None else matches(found, call.expected)
            if reply.status_code != call.status or not fits:
                wrong.append(f"{call.method} {call.path}: {reply.status_code} {reply.text}")
    return wrong


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
