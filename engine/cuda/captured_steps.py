"""Steps that are captured, and replayed from then on: see `step_sizes`."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from .attention import Chunks
from .following_head import Followed
from .forward import Forward
from .inputs import FIELDS, ChunkInputs, Inputs
from .proposer import DeviceProposer
from .runtime import Run, Runtime
from .step_sizes import MAX_CHUNKS, NOTHING_CAPTURED, Ladder, StepSize


class CapturedSteps:
    def __init__(
        self,
        runtime: Runtime,
        forward: Forward,
        inputs: Inputs,
        proposer: DeviceProposer | None,
        max_model_len: int,
    ) -> None:
        """None of them before `capture`. `proposer` makes guesses before the steps that verify them."""
        self._runtime, self._forward, self._inputs = runtime, forward, inputs
        self._proposer, self._max_model_len = proposer, max_model_len
        self._ladder = NOTHING_CAPTURED
        self.chunk_inputs = ChunkInputs(runtime, MAX_CHUNKS)
        self.chunk_logits = torch.zeros(MAX_CHUNKS, forward.model.config.vocab_size, device=runtime.device)
        """Of chunks that need them, once a step is done."""
        self.steps: dict[StepSize, Run] = {}
        self.halves: dict[StepSize, tuple[Run, Run]] = {}
        """The model's part, and that of drawing."""
        self.proposals: dict[StepSize, Run] = {}
        """Guesses for the step of this size, left in its inputs."""

    # Which one.

    def fit(self, given: StepSize, num_chunks: int, *, has_masks: bool) -> StepSize | None:
        """The one that holds `given`, if one does; with guesses that is itself of `fit_drafted`. `has_masks`: rows may
        have some."""
        if given.num_drafts:
            return given if self.steps else None
        if has_masks and not num_chunks:
            return self._ladder.fit_masked(given.num_single)
        return self._ladder.fit(given.num_single, given.num_chunk_tokens, num_chunks)

    def fit_drafted(self, num_rows: int, num_drafts: int) -> StepSize | None:
        """The one for rows of so many guesses, some of which may find no room; None if none do. Before `capture`, what
        is launched for them."""
        if not self.steps:
            return StepSize(num_rows, 0, num_drafts)
        return self._ladder.fit_drafted(num_rows, num_drafts)

    # Capture.

    def capture(self, ladder: Ladder) -> None:
        """Steps of these sizes. Padding alone is computed meanwhile."""
        # The largest first: the others find room in its memory.
        for size in sorted(ladder.sizes, key=lambda size: size.num_tokens, reverse=True):
            self._capture(size, has_halves=ladder.has_halves(size))
            if self._proposer is not None and size.num_drafts:
                inputs = self._inputs.of(size.num_tokens)
                propose = partial(self._proposer.propose, inputs, size.num_single, 1 + size.num_drafts)
                propose()
                self.proposals[size] = self._runtime.capture(propose)
        self._ladder = ladder

    def _capture(self, size: StepSize, *, has_halves: bool) -> None:
        self._inputs.upload(0, np.empty((len(FIELDS), 0), np.int32), StepSize(0, 0), size)
        self.chunk_inputs.upload(0, (), size.num_single, ())
        self._run(size)  # compiles, and lets libraries allocate
        if has_halves:
            self.halves[size] = self._runtime.capture_in_two(
                partial(self._logits, size), partial(self._draw, size), has_branch=size.has_branch
            )
        # What has guesses waits for the host anyway: that its halves are launched apart is not to be seen.
        if size.num_drafts:
            self.steps[size] = _both(*self.halves[size])
        else:
            self.steps[size] = self._runtime.capture(partial(self._run, size), has_branch=size.has_branch)

    # What is captured.

    def _run(self, size: StepSize) -> None:
        self._draw(size, self._logits(size))

    def _logits(self, size: StepSize) -> tuple[Tensor, Followed | None]:
        chunks, wanted = None, None
        if size.num_chunk_tokens:
            starts, ends = self.chunk_inputs.tensors
            chunks = Chunks(starts, size.num_chunk_tokens, self._max_model_len)
            wanted = torch.cat((self._inputs.counting[: size.num_decode_tokens], ends))
        hidden, streams = self._forward.hidden(size, chunks, wanted)
        return self._forward.logits(hidden), self._forward.follow(size, streams)

    def _draw(self, size: StepSize, computed: tuple[Tensor, Followed | None]) -> None:
        logits, followed = computed
        self._forward.draw(size, logits, followed)
        if size.num_chunk_tokens:
            self.chunk_logits.copy_(logits[size.num_decode_tokens :])


def _both(first: Run, second: Run) -> Run:
    def run() -> None:
        first()
        second()

    return run
