"""Throughput of many requests, so many at a time."""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from .completions import Prompts, ask, completion
from .load import Answer, Connection, connect
from .topology import Running


@dataclass(frozen=True, slots=True)
class Load:
    num_requests: int
    at_once: int
    prompt_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.num_requests} × ({self.prompt_tokens} in, {self.output_tokens} out), {self.at_once} at a time"


@dataclass(frozen=True, slots=True)
class Carried:
    output_tokens_per_s: float
    """From the first request sent to the last token received."""
    ttft_s: float
    """Median."""


async def carry(running: Running, prompts: Prompts, load: Load) -> Carried:
    """One connection for each that runs at once; each asks again as soon as it is answered."""
    taken = [prompts.take(load.prompt_tokens) for _ in range(load.num_requests)]
    requests = iter([completion(prompt, load.output_tokens) for prompt in taken])
    connections = [await connect(running.server.port) for _ in range(load.at_once)]
    begin = time.perf_counter()
    try:
        answers = await asyncio.gather(*(ask_on(connection, requests) for connection in connections))
    finally:
        for connection in connections:
            connection.leave()
    return summary(begin, load, list(chain.from_iterable(answers)))


def summary(begin: float, load: Load, answers: Sequence[Answer]) -> Carried:
    wall_s = max(answer.ended_at for answer in answers) - begin
    ttft_s = statistics.median(answer.ttft_s for answer in answers)
    return Carried(load.num_requests * load.output_tokens / wall_s, ttft_s)


async def ask_on(connection: Connection, requests: Iterator[bytes]) -> list[Answer]:
    """Asks until nothing is left to ask."""
    return [await ask(connection, request) for request in requests]
