"""How long other streams stand still while a very long prompt arrives."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .load import Connection, connect
from .servers import Server

NUM_WATCHED = 4
"""Streams that run meanwhile."""
WATCHED_TOKENS = 20_000
"""More than any window lasts: the watchers leave."""
PING_PAUSE_S = 0.002
SETTLE_S = 0.3


@dataclass(frozen=True, slots=True)
class Stall:
    """Longest times within one window, seconds."""

    gap_s: float
    """Without a token, in any watched stream."""
    ping_s: float
    """For an answer to GET /ping, asked all the time: how long the server's own loop was busy, workers apart."""


@dataclass(frozen=True, slots=True)
class Stalls:
    """Over all windows."""

    median_gap_s: float
    worst_gap_s: float
    worst_ping_s: float


def summary(stalls: Sequence[Stall]) -> Stalls:
    gaps = [stall.gap_s for stall in stalls]
    return Stalls(statistics.median(gaps), max(gaps), max(stall.ping_s for stall in stalls))


async def watch(server: Server, prompts: Sequence[bytes], quiet_s: float) -> Stall:
    """Opens streams, then sends each of `prompts` and awaits its answer; without any, waits for `quiet_s` instead."""
    watched = [await connect(server.port) for _ in range(NUM_WATCHED)]
    other, pinger = await connect(server.port), await connect(server.port)
    streams = [asyncio.ensure_future(c.ask(watched_request(server, i))) for i, c in enumerate(watched)]
    over = asyncio.Event()
    try:
        await asyncio.sleep(SETTLE_S)
        pings = asyncio.ensure_future(ping_until(over, server, pinger))
        begin = time.perf_counter()
        for prompt in prompts:
            (await other.ask(prompt)).check_whole()
        await asyncio.sleep(0.0 if prompts else quiet_s)
        gap_s = max(c.answer.longest_gap_s(begin, time.perf_counter()) for c in watched)
        over.set()
        return Stall(gap_s, max(await pings))
    finally:
        over.set()
        for connection in (*watched, other, pinger):
            connection.leave()
        await asyncio.gather(*streams, return_exceptions=True)  # each fails, since it was left


def watched_request(server: Server, number: int) -> bytes:
    return server.request([10 + number] * 8, WATCHED_TOKENS)


async def ping_until(over: asyncio.Event, server: Server, connection: Connection) -> list[float]:
    """Seconds each ping took."""
    took: list[float] = []
    while not over.is_set():
        answer = await connection.ask(server.ping)
        took.append(answer.ended_at - answer.sent_at)
        await asyncio.sleep(PING_PAUSE_S)
    return took
