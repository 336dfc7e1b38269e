"""Streamed tokens a second when nothing but CPU limits them, and the CPU that a token costs."""

import asyncio
import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .load import ask_all
from .servers import Server
from .stack import Stack

PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Flood:
    """What one burst of streams took."""

    num_tokens: int
    num_events: int
    wall_s: float
    """From the first request sent to the last token received."""
    server_cpu_s: float
    others_cpu_s: float
    """Decode worker and load generator."""

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s

    @property
    def cpu_s_per_1k(self) -> float:
        return self.server_cpu_s / self.num_tokens * 1000


def flood(
    runner: asyncio.Runner, stack: Stack, server: Server, num_streams: int, num_tokens: int, others: Sequence[str]
) -> Flood:
    """`num_streams` requests at once, `num_tokens` each. Raises LoadError if any of them is not answered in full."""
    requests = [server.request([100 + i] * PROMPT_TOKENS, num_tokens) for i in range(num_streams)]
    gc.collect()
    cpu_s, others_cpu_s = stack.cpu_s(server.process), own_and(stack, others)
    answers = runner.run(ask_all(server.port, requests))
    cpu_s, others_cpu_s = stack.cpu_s(server.process) - cpu_s, own_and(stack, others) - others_cpu_s
    for answer in answers:
        answer.check_whole()
    return Flood(
        num_tokens=num_streams * num_tokens,
        num_events=sum(answer.num_events for answer in answers),
        wall_s=max(a.ended_at for a in answers) - min(a.sent_at for a in answers),
        server_cpu_s=cpu_s,
        others_cpu_s=others_cpu_s,
    )


def own_and(stack: Stack, processes: Sequence[str]) -> float:
    return time.process_time() + sum(stack.cpu_s(name) for name in processes)


@dataclass(frozen=True, slots=True)
class FanOut:
    """Medians over the repetitions of one server."""

    tokens_per_s: float
    events_per_token: float
    cpu_s_per_1k: float
    others_cpu_s_per_1k: float
    spread: tuple[float, float]
    """Least and most tokens a second."""


def summary(floods: Sequence[Flood]) -> FanOut:
    rates = [f.tokens_per_s for f in floods]
    return FanOut(
        tokens_per_s=statistics.median(rates),
        events_per_token=statistics.median(f.num_events / f.num_tokens for f in floods),
        cpu_s_per_1k=statistics.median(f.cpu_s_per_1k for f in floods),
        others_cpu_s_per_1k=statistics.median(f.others_cpu_s / f.num_tokens * 1000 for f in floods),
        spread=(min(rates), max(rates)),
    )


def interleaved(
    runner: asyncio.Runner,
    stack: Stack,
    servers: Sequence[Server],
    *,
    num_streams: int,
    num_tokens: int,
    num_repetitions: int,
) -> list[FanOut]:
    """A summary for each server, in order. The servers take turns, so that what disturbs the machine disturbs all; the
    first turn of each warms it up and is not counted."""
    floods: list[list[Flood]] = [[] for _ in servers]
    for repetition in range(num_repetitions + 1):
        for server, found in zip(servers, floods, strict=True):
            result = flood(runner, stack, server, num_streams, num_tokens, server.helpers)
            if repetition:
                found.append(result)
    return [summary(found) for found in floods]
