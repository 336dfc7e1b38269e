"""Time to first token at low load: what the way through the router adds to a bare answer."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .load import Connection, connect
from .servers import Server

PROMPT_TOKENS = 32
NUM_TOKENS = 4
PAUSE_S = 0.004
"""Between requests, so that each finds everything idle."""


STAGES = re.compile(rb'"(?:prefill|transfer)_s":([0-9.e-]+)')
"""In the router's usage: together, from placement to first token."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    p50_s: float
    p99_s: float
    worker_p50_s: float
    """Of it from placement to first token: ZeroMQ there, the worker, and back. 0 where there is no worker."""


@dataclass(frozen=True, slots=True)
class Sample:
    ttft_s: float
    worker_s: float


async def interleaved(servers: Sequence[Server], num_requests: int) -> list[FirstToken]:
    """Percentiles for each server, in order: one request at a time on a kept connection, the servers in turn."""
    connections = [await connect(server.port) for server in servers]
    samples: list[list[Sample]] = [[] for _ in servers]
    try:
        for number in range(-num_requests // 10, num_requests):
            for server, connection, found in zip(servers, connections, samples, strict=True):
                sample = await measure(server, connection, number)
                if number >= 0:
                    found.append(sample)
    finally:
        for connection in connections:
            connection.leave()
    return [summary(found) for found in samples]


async def measure(server: Server, connection: Connection, number: int) -> Sample:
    answer = await connection.ask(server.request([1000 + number] * PROMPT_TOKENS, NUM_TOKENS, with_usage=True))
    answer.check_whole()
    await asyncio.sleep(PAUSE_S)
    return Sample(answer.ttft_s, sum(map(float, STAGES.findall(answer.text))))


def summary(samples: Sequence[Sample]) -> FirstToken:
    ttfts_s = [sample.ttft_s for sample in samples]
    worker_s = [sample.worker_s for sample in samples]
    return FirstToken(percentile(ttfts_s, 50), percentile(ttfts_s, 99), percentile(worker_s, 50))


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
