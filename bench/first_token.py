"""Time to first token at low load: what the way through the router adds to a bare answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from .load import Connection, connect
from .servers import Server

PROMPT_TOKENS = 32
NUM_TOKENS = 4
PAUSE_S = 0.004
"""Between requests, so that each finds everything idle."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    p50_s: float
    p99_s: float


async def interleaved(servers: Sequence[Server], num_requests: int) -> list[FirstToken]:
    """Percentiles for each server, in order: one request at a time on a kept connection, the servers in turn."""
    connections = [await connect(server.port) for server in servers]
    ttfts_s: list[list[float]] = [[] for _ in servers]
    try:
        for number in range(-num_requests // 10, num_requests):
            for server, connection, found in zip(servers, connections, ttfts_s, strict=True):
                ttft_s = await measure(server, connection, number)
                if number >= 0:
                    found.append(ttft_s)
    finally:
        for connection in connections:
            connection.leave()
    return [FirstToken(percentile(found, 50), percentile(found, 99)) for found in ttfts_s]


async def measure(server: Server, connection: Connection, number: int) -> float:
    request = server.request([1000 + number] * PROMPT_TOKENS, NUM_TOKENS)
    answer = await connection.ask(request)
    answer.check_whole()
    await asyncio.sleep(PAUSE_S)
    return answer.ttft_s


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
