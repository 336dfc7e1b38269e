"""A load generator that costs little: while an answer comes it keeps bytes and arrival times, and counts afterwards."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import uvloop

EVENT = b"\ndata: "
DONE = b"\ndata: [DONE]"
LAST_CHUNK = b"\r\n0\r\n\r\n"
FULL_LENGTH = b'"finish_reason":"length"'


class LoadError(RuntimeError):
    """The server did not answer as the measurement needs it; the message says what it sent."""


def post(path: str, body: bytes) -> bytes:
    """An HTTP/1.1 request."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()


@dataclass(slots=True)
class Answer:
    """One answer, as it arrived: `parts[i]` at `arrivals[i]`, seconds of `time.perf_counter`."""

    sent_at: float
    arrivals: list[float] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    head: bytes = b""
    """Status line and headers, once they are whole."""
    num_left: int | None = None
    """Bytes of the body still to come; None for one in chunks, whose end shows."""

    def add(self, data: bytes, now: float) -> bool:
        """Whether the answer is whole now."""
        self.arrivals.append(now)
        self.parts.append(data)
        if not self.head:
            return self._begin(b"".join(self.parts))
        if self.num_left is None:
            return self._ends_with_last_chunk()
        self.num_left -= len(data)
        return self.num_left <= 0

    def _begin(self, data: bytes) -> bool:
        head, separator, body = data.partition(b"\r\n\r\n")
        if not separator:
            return False
        self.head = head.lower()
        _, sized, after = self.head.partition(b"\r\ncontent-length:")
        if not sized:
            return self._ends_with_last_chunk()
        self.num_left = int(after.split(b"\r\n")[0]) - len(body)
        return self.num_left <= 0

    def _ends_with_last_chunk(self) -> bool:
        end = self.parts[-1]
        if len(end) < len(LAST_CHUNK):
            end = b"".join(self.parts[-len(LAST_CHUNK) :])
        return end.endswith(LAST_CHUNK)

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def text(self) -> bytes:
        return b"".join(self.parts)

    @property
    def num_events(self) -> int:
        """Events with content: what ends the stream is no event."""
        text = self.text
        return text.count(EVENT) - text.count(DONE)

    @property
    def ended_at(self) -> float:
        return self.arrivals[-1]

    @property
    def ttft_s(self) -> float:
        """Seconds from sending the request to the first event. Raises LoadError if there was none."""
        seen = b""
        for part, arrival in zip(self.parts, self.arrivals, strict=True):
            seen += part
            if EVENT in seen:
                return arrival - self.sent_at
        raise LoadError(f"an answer without an event: {seen[:500]!r}")

    def longest_gap_s(self, begin: float, end: float) -> float:
        """Longest time without an arrival within [begin, end]."""
        inside = [begin, *(a for a in self.arrivals if begin < a < end), end]
        return max(later - earlier for earlier, later in pairwise(inside))

    def check_whole(self) -> None:
        """Raises LoadError unless this is a whole stream that ended at its max_tokens."""
        text = self.text
        if self.status != 200 or DONE not in text or FULL_LENGTH not in text:
            raise LoadError(f"not a whole stream: {text[:500]!r} … {text[-500:]!r}")


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._whole: asyncio.Future[None] | None = None

    async def ask(self, request: bytes) -> Answer:
        """Sends the request; the answer when it is whole. Raises LoadError if the server closes before."""
        assert self._answer is None
        assert self._transport is not None
        self._whole = asyncio.get_running_loop().create_future()
        self._answer = answer = Answer(time.perf_counter())
        self._transport.write(request)
        try:
            await self._whole
        finally:
            self._answer = None
        return answer

    def leave(self) -> None:
        """Disconnects at once, as a client that has gone."""
        assert self._transport is not None
        self._transport.abort()

    @property
    def answer(self) -> Answer:
        """The one that is coming."""
        assert self._answer is not None
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by inheritance

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._answer is None or self._whole is None:
            raise LoadError(f"bytes that nobody asked for: {data[:500]!r}")
        if self._answer.add(data, now) and not self._whole.done():
            self._whole.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(LoadError(f"the server closed the connection: {error}"))


async def connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


async def ask_all(port: int, requests: Sequence[bytes]) -> list[Answer]:
    """All at the same time, each on a connection of its own, opened beforehand."""
    connections = [await connect(port) for _ in requests]
    try:
        return await asyncio.gather(*(c.ask(r) for c, r in zip(connections, requests, strict=True)))
    finally:
        for connection in connections:
            connection.leave()


def runner() -> asyncio.Runner:
    """The fastest loop there is, as in the servers."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
