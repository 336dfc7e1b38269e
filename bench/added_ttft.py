"""Time to first token of one request at a time, on several topologies in turns."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from .completions import Prompts, ask_once, completion
from .first_token import percentile
from .load import Connection, connect
from .topology import Running

NUM_TOKENS = 2
PAUSE_S = 0.05
"""Between requests: workers give blocks back and tell their credit."""


@dataclass(frozen=True, slots=True)
class Ttft:
    """Of one topology, for prompts of one length."""

    num_tokens: int
    num_requests: int
    p50_s: float
    p99_s: float
    """The largest, of fewer than a hundred."""


async def in_turns(
    servers: Sequence[Running], prompts: Prompts, lengths: Sequence[tuple[int, int]]
) -> list[list[Ttft]]:
    """For each topology, one for each (length in tokens, number of requests). The topologies take turns, all with the
    same prompts; the rest of them are idle meanwhile. A first request of each length but the last warms up and is not
    counted: the longest prompts consist of chunks like theirs."""
    connections = [await connect(each.server.port) for each in servers]
    try:
        found = [
            await of_length(connections, prompts, num_tokens, num_requests, warm_up=index < len(lengths) - 1)
            for index, (num_tokens, num_requests) in enumerate(lengths)
        ]
    finally:
        for connection in connections:
            connection.leave()
    return [list(each) for each in zip(*found, strict=True)]


async def of_length(
    connections: Sequence[Connection], prompts: Prompts, num_tokens: int, num_requests: int, *, warm_up: bool
) -> list[Ttft]:
    samples: list[list[float]] = [[] for _ in connections]
    for number in range(-1 if warm_up else 0, num_requests):
        request = completion(prompts.take(num_tokens), NUM_TOKENS)
        for connection, ttfts_s in zip(connections, samples, strict=True):
            ttft_s = (await ask_once(connection, request)).ttft_s
            await asyncio.sleep(PAUSE_S)
            if number >= 0:
                ttfts_s.append(ttft_s)
    return [Ttft(num_tokens, num_requests, percentile(each, 50), percentile(each, 99)) for each in samples]
