"""One run of the router's benchmark: starts the servers, measures them in turns, ends them."""

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import fan_out, first_token, stall
from .fan_out import FanOut
from .first_token import FirstToken
from .load import runner
from .prompts import long_ids, long_text
from .servers import BLOCK_TOKENS, FakeWorker, Server, model_with_context, peer_spec, router_specs
from .stack import Stack
from .stall import Stalls

STEP_S = 0.005
"""Of a paced engine."""
QUIET_S = 1.5
"""About as long as a window with a long prompt."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    streams: int = 64
    tokens: int = 256
    repetitions: int = 9
    requests: int = 500
    """For the time to first token."""
    prompts: int = 5
    """Long ones, of each kind."""
    prompt_tokens: int = 131_072

    @property
    def context(self) -> int:
        """Tokens of the longest request, with room for a text that is a little longer than asked."""
        return self.prompt_tokens + 2 * stall.WATCHED_TOKENS


@dataclass(frozen=True, slots=True)
class Measured:
    """Each list: the router, the peer, and for saturation the peer without a pause."""

    sizes: Sizes
    saturated: list[FanOut]
    paced: list[FanOut]
    first_token: list[FirstToken]
    quiet: list[Stalls]
    text: list[Stalls]
    ids: list[Stalls]
    load_average: float
    """Before the run."""


def measure(sizes: Sizes, model: str | None, quiet_s: float = QUIET_S) -> Measured:
    """Starts what is measured and ends it. `model`: whose tokenizer is used; None: the demo model's.

    Raises LoadError if an answer is not as it should be.
    """
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name, runner() as loop:
        folder = Path(name)
        bench = Bench(sizes, model_with_context(model, folder, sizes.context), folder, loop, quiet_s)
        saturated, first = bench.saturated()
        paced, quiet, text, ids = bench.paced()
    return Measured(sizes, saturated, paced, first, quiet, text, ids, load_average)


@dataclass(frozen=True, slots=True)
class Bench:
    sizes: Sizes
    model: Path
    folder: Path
    loop: asyncio.Runner
    quiet_s: float

    def saturated(self) -> tuple[list[FanOut], list[FirstToken]]:
        """With a fake engine that takes no time."""
        sizes = self.sizes
        longest = fan_out.PROMPT_TOKENS + sizes.tokens + BLOCK_TOKENS
        worker = FakeWorker(0.0, sizes.streams, longest, longest * sizes.streams)
        with self.stack(worker) as stack:
            ours, peer = servers(stack, worker.step_s)
            at_once = Server(peer.process, peer.port, "/at_once?tokens={num_tokens}")
            fan_outs = fan_out.interleaved(
                self.loop,
                stack,
                [ours, peer, at_once],
                num_streams=sizes.streams,
                num_tokens=sizes.tokens,
                num_repetitions=sizes.repetitions,
            )
            return fan_outs, self.loop.run(first_token.interleaved([ours, peer], sizes.requests))

    def paced(self) -> tuple[list[FanOut], list[Stalls], list[Stalls], list[Stalls]]:
        """With one whose steps take STEP_S."""
        sizes = self.sizes
        worker = FakeWorker(STEP_S, max(sizes.streams, stall.NUM_WATCHED + 1), sizes.context, 2 * sizes.context)
        texts = [long_text(self.model, sizes.prompt_tokens, i) for i in range(sizes.prompts)]
        ids = [long_ids(sizes.prompt_tokens, i) for i in range(sizes.prompts)]
        with self.stack(worker) as stack:
            ours, peer = servers(stack, STEP_S)
            fan_outs = fan_out.interleaved(
                self.loop,
                stack,
                [ours, peer],
                num_streams=sizes.streams,
                num_tokens=sizes.tokens,
                num_repetitions=max(1, sizes.repetitions // 3),
            )
            quiet = [self.stalls(server, [None] * sizes.prompts) for server in (ours, peer)]
            with_texts = [self.stalls(server, texts) for server in (ours, peer)]
            return fan_outs, quiet, with_texts, [self.stalls(server, ids) for server in (ours, peer)]

    def stack(self, worker: FakeWorker) -> Stack:
        return Stack([*router_specs(self.model, self.folder, worker), peer_spec()])

    def stalls(self, server: Server, prompts: list[Any]) -> Stalls:
        """A window for each prompt; None: a quiet one."""
        found = []
        for prompt in prompts:
            requests = [] if prompt is None else [server.request(prompt, 1)]
            found.append(self.loop.run(stall.watch(server, requests, self.quiet_s)))
        return stall.summary(found)


def servers(stack: Stack, step_s: float) -> tuple[Server, Server]:
    """The router and the peer."""
    ours = Server("router", stack.port("router"), "/v1/completions", helpers=("decode",))
    return ours, Server("peer", stack.port("peer"), f"/paced?tokens={{num_tokens}}&step_s={step_s}")
