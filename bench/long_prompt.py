"""What a running stream feels of another client's long prompt."""

import asyncio
import statistics
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

from .completions import Prompts, ask_once, completion, gaps_s
from .first_token import percentile
from .load import Answer, Connection, LoadError, connect
from .topology import Running

WATCHED_PROMPT_TOKENS = 128
NUM_SETTLED = 8
"""Tokens the stream has brought before the window begins."""
TOKEN_TIMEOUT_S = 30.0
PAUSE_S = 0.3
"""After a window: the watcher's blocks come back."""


@dataclass(frozen=True, slots=True)
class Window:
    """From sending the long prompt to its first token; or a quiet time."""

    itls_s: Sequence[float]
    """Times between tokens of the stream, the gaps that reach out of the window whole."""
    ttft_s: float
    """Of the long prompt; 0 in a quiet time."""


@dataclass(frozen=True, slots=True)
class Felt:
    """Over all windows of a topology."""

    worst_gap_s: float
    itl_p50_s: float
    itl_p99_s: float
    ttft_s: float
    """Median."""


def summary(windows: Sequence[Window]) -> Felt:
    itls_s = [itl_s for window in windows for itl_s in window.itls_s]
    ttft_s = statistics.median(window.ttft_s for window in windows)
    return Felt(max(itls_s), percentile(itls_s, 50), percentile(itls_s, 99), ttft_s)


async def with_long_prompt(running: Running, prompts: Prompts, long_tokens: int, watched_tokens: int) -> Window:
    """A window in which a prompt of `long_tokens` is computed, beside a stream of `watched_tokens`. Raises LoadError
    if the stream ends before."""
    request = completion(prompts.take(long_tokens), 1)
    return await watch(running, prompts, watched_tokens, ttft_of(running, request))


async def quiet(running: Running, prompts: Prompts, watched_tokens: int, quiet_s: float) -> Window:
    """A window in which nothing else happens."""
    return await watch(running, prompts, watched_tokens, asyncio.sleep(quiet_s, 0.0))


async def ttft_of(running: Running, request: bytes) -> float:
    connection = await connect(running.server.port)
    try:
        return (await ask_once(connection, request)).ttft_s
    finally:
        connection.leave()


async def watch(running: Running, prompts: Prompts, num_tokens: int, meanwhile: Coroutine[None, None, float]) -> Window:
    watched = await connect(running.server.port)
    stream = asyncio.ensure_future(watched.ask(completion(prompts.take(WATCHED_PROMPT_TOKENS), num_tokens)))
    await asyncio.sleep(0)  # it is sent
    try:
        await next_token(watched, stream, num_before=NUM_SETTLED)
        begin = time.perf_counter()
        ttft_s = await meanwhile
        end = time.perf_counter()
        await next_token(watched, stream, num_before=len(watched.answer.arrivals))
        return Window(gaps_s(watched.answer, begin, end), ttft_s)
    finally:
        meanwhile.close()  # where it was not reached
        watched.leave()
        await asyncio.gather(stream, return_exceptions=True)  # it fails, since it was left
        await asyncio.sleep(PAUSE_S)


async def next_token(watched: Connection, stream: asyncio.Future[Answer], num_before: int) -> None:
    """Waits until the stream has brought more than `num_before`. Raises LoadError if it ends before."""
    async with asyncio.timeout(TOKEN_TIMEOUT_S):
        while not stream.done() and len(watched.answer.arrivals) <= num_before:
            await asyncio.sleep(0.01)
    if stream.done():
        raise LoadError(f"the watched stream has ended: {stream.exception() or 'it was too short'}")
