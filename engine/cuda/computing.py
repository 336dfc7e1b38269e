"""What a step computes, up to the tokens that it draws: a captured step is replayed, another one launched kernel by
kernel; where masks are waited for, the model's part first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from torch import Tensor

from ..models.llama import Llama
from ..plan import Draw, Row
from .captured_steps import CapturedSteps
from .chunk_runs import chunk_runs, describe, needs_logits, wanted_tokens
from .drawing import Drawing
from .following_head import Followed, FollowingHead
from .forward import Forward
from .grid import Grid
from .guessing import Guessing, Proposed
from .inputs import Inputs, to_device
from .prompt_facts import NO_FACTS, PromptFacts
from .row_inputs import RowInputs
from .runtime import Run, Runtime
from .step_sizes import StepSize

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step has computed, on its way from the device, but for tokens that it drew."""

    logits: Tensor
    """fp32 [N, vocab_size]: of the chunks that need them."""
    proposed: Proposed | None = None
    facts: PromptFacts = NO_FACTS


@dataclass(frozen=True, slots=True)
class _Launched:
    """By the model's part of a step that is not captured."""

    logits: Tensor
    followed: Followed | None
    facts: PromptFacts


@dataclass(frozen=True, slots=True)
class Computing:
    runtime: Runtime
    model: Llama
    rows: RowInputs
    inputs: Inputs
    forward: Forward
    captured: CapturedSteps
    drawing: Drawing
    guessing: Guessing
    head: FollowingHead | None

    def begin(self, parity: int, grid: Grid, chunks: Sequence[Row], rest: Sequence[Draw]) -> Callable[[], Computed]:
        """Launches what need not wait for masks; what it gives launches the rest, stores all KV and draws for `grid`.
        `rest` is drawn later."""
        if not grid.rows and not chunks:
            return partial(self._compute_nothing, grid, rest)
        tokens = self.rows.grid(grid)
        if chunks:
            tokens = np.concatenate((tokens, self.rows.chunks(parity, chunks)), axis=1)
        if self.head is not None:
            self.head.begin(tokens[1, : len(grid.rows)], chunks, has_guesses=grid.num_turns > 1)
        given = StepSize(grid.stride, sum(len(row.token_ids) for row in chunks), grid.num_turns - 1)
        size = self.captured.fit(given, len(chunks), has_masks=grid.has_masks)
        if size is None or any(row.num_scored or row.pooling for row in chunks):
            self.inputs.upload(parity, tokens, given, given)
            launch = partial(self._launch_model, grid, chunks, given)
            return self._in_parts(parity, grid, rest, given, launch, partial(self._launch_draws, grid, given))
        self.inputs.upload(parity, tokens, given, size)
        if not grid.has_masks or size not in self.captured.halves:
            return partial(self._replay, parity, grid, chunks, rest, size)
        compute, draw = self.captured.halves[size]
        return self._in_parts(parity, grid, rest, size, compute, partial(self._replay_draws, draw))

    def _compute_nothing(self, grid: Grid, rest: Sequence[Draw]) -> Computed:
        self.drawing.prepare(grid, rest)
        return Computed(self.captured.chunk_logits[:0])

    def _replay(self, parity: int, grid: Grid, chunks: Sequence[Row], rest: Sequence[Draw], size: StepSize) -> Computed:
        """A captured step whose inputs were uploaded, but for masks and edits."""
        self.drawing.prepare(grid, rest)
        proposed = self.guessing.propose(parity, grid, size)
        needing = [index for index, row in enumerate(chunks) if needs_logits(row)]
        if chunks:
            lengths = [len(row.token_ids) for row in chunks]
            self.captured.chunk_inputs.upload(parity, lengths, size.num_single, needing)
        self.captured.steps[size]()
        return Computed(self.captured.chunk_logits[: len(needing)], proposed)

    def _in_parts(
        self,
        parity: int,
        grid: Grid,
        rest: Sequence[Draw],
        size: StepSize,
        compute: Callable[[], T],
        draw: Callable[[T], Computed],
    ) -> Callable[[], Computed]:
        """Of a step whose model computes while masks are made; only what is guessed here needs the first ones before.
        What it gives launches what is left of it."""

        def guess_and_compute() -> Computed:
            self.drawing.prepare(grid, rest)
            proposed = self.guessing.propose(parity, grid, size)
            computed = compute()
            self.guessing.follow(grid, size, proposed)
            return replace(draw(computed), proposed=proposed)

        if grid.asking:
            return guess_and_compute
        computed = compute()

        def draw_only() -> Computed:
            self.drawing.prepare(grid, rest)
            self.guessing.follow(grid, size, None)
            return draw(computed)

        return draw_only

    def _replay_draws(self, draw: Run, _: None) -> Computed:
        draw()
        return Computed(self.captured.chunk_logits[:0])

    def _launch_model(self, grid: Grid, chunks: Sequence[Row], size: StepSize) -> _Launched:
        """Of a step that is not captured, kernel by kernel."""
        described, wanted, num_logits = None, None, grid.num_tokens
        if chunks:
            runs = chunk_runs(chunks)
            described = describe(self.runtime, runs)
            tokens_wanted, num_logits = wanted_tokens(grid.num_tokens, chunks, runs)
            wanted = to_device(self.runtime, np.array(tokens_wanted, np.int64))
        hidden, streams = self.forward.hidden(size, described, wanted)
        logits = self.forward.logits(hidden[:num_logits])
        facts = PromptFacts.launch(self.runtime, self.model, chunks, hidden[num_logits:])
        return _Launched(logits, self.forward.follow(size, streams), facts)

    def _launch_draws(self, grid: Grid, size: StepSize, launched: _Launched) -> Computed:
        self.forward.draw(size, launched.logits, launched.followed)
        return Computed(launched.logits[grid.num_tokens :], facts=launched.facts)
