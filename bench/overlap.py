"""How much of a transfer the computing hides: what is left of it when the last chunk has been computed."""

import asyncio
import statistics
import time
from dataclasses import dataclass

import numpy as np

from .added_ttft import PAUSE_S
from .completions import Prompts, ask_once, completion, stage_s
from .load import LoadError, connect
from .topology import Running

NUM_TOKENS = 8
"""Long enough for the prefill worker's word that it is done to reach the router."""
NUM_COPIES = 5


@dataclass(frozen=True, slots=True)
class Overlap:
    """Medians."""

    num_tokens: int
    prefill_s: float
    """From placement to the end of the last chunk's compute, as router and prefill worker count them."""
    tail_s: float
    """From then to the first token."""
    worst_tail_s: float


async def measure(running: Running, prompts: Prompts, num_tokens: int, num_requests: int) -> Overlap:
    """Raises LoadError if the KV was not moved."""
    connection = await connect(running.server.port)
    prefills_s, tails_s = [], []
    try:
        for _ in range(num_requests):
            answer = await ask_once(connection, completion(prompts.take(num_tokens), NUM_TOKENS))
            prefills_s.append(stage_s(answer, "prefill"))
            tails_s.append(stage_s(answer, "transfer"))
            await asyncio.sleep(PAUSE_S)
    finally:
        connection.leave()
    if not min(tails_s):
        raise LoadError(f"no KV was moved for a prompt of {num_tokens} tokens")
    return Overlap(num_tokens, statistics.median(prefills_s), statistics.median(tails_s), max(tails_s))


def copy_s(num_bytes: int) -> float:
    """Seconds that one copy of so many bytes takes in memory, median."""
    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    times = []
    for _ in range(NUM_COPIES):
        begin = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
