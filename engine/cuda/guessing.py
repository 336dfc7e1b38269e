"""The guesses of a step's rows: which of them are tried, those that are made here, and what grammars say to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..guesses import Guesses, followed, without_guesses
from ..plan import DRAFT, Row
from .captured_steps import CapturedSteps
from .drawing import Drawing
from .grid import Grid
from .inputs import Inputs, to_device
from .proposer import DeviceProposer
from .runtime import Runtime
from .step_sizes import StepSize


@dataclass(frozen=True, slots=True)
class Proposed:
    """What was guessed here."""

    tokens: np.ndarray
    """int32, of a grid, once `wait` or the step is done."""
    wait: Callable[[], None]


class Guessing:
    def __init__(
        self,
        runtime: Runtime,
        inputs: Inputs,
        drawing: Drawing,
        captured: CapturedSteps,
        proposer: DeviceProposer | None,
    ) -> None:
        """`proposer` guesses for rows that ask for it; without one their guesses are left out."""
        self._runtime, self._inputs, self._drawing = runtime, inputs, drawing
        self._captured, self._proposer = captured, proposer
        self._host = [runtime.pinned(len(drawing.tokens) // 2) for _ in range(2)]

    def grid(self, rows: Sequence[Row], chunks: Sequence[Row]) -> Grid:
        """Guesses are left out beside chunks, and where no captured step has room for them."""
        max_drafts = max((row.num_drafts for row in rows), default=0)
        if not max_drafts:
            return Grid.plain(rows)
        num_asking = sum(self._drawing.tells_logprobs(row.seq_id) for row in rows)
        if chunks or num_asking * (1 + max_drafts) > self._drawing.num_kept:
            return Grid.of(rows, len(rows), 0)
        size = self._captured.fit_drafted(len(rows), max_drafts)
        if size is None:
            return Grid.of(rows, len(rows), 0)
        rows = self._with_ready_guesses(rows)
        has_guesses = any(row.num_drafts for row in rows)
        return Grid.of(rows, size.num_single, size.num_drafts) if has_guesses else Grid.of(rows, len(rows), 0)

    def _with_ready_guesses(self, rows: Sequence[Row]) -> list[Row]:
        """Without those that the proposer cannot make now, or that must be held against a grammar and bans at once."""
        asking = [row for row in rows if DRAFT in row.token_ids[1:2]]
        asking = [row for row in asking if row.follow is None or not any(draw.bans for draw in row.draws)]
        ready = self._proposer.ready(asking) if asking and self._proposer is not None else set()
        return [
            without_guesses(row) if DRAFT in row.token_ids[1:2] and row.seq_id not in ready else row for row in rows
        ]

    def propose(self, parity: int, grid: Grid, size: StepSize) -> Proposed | None:
        """The guesses of rows that ask for them, made before the step of this size and parity that verifies them."""
        if not grid.asking:
            return None
        inputs = self._inputs.of(size.num_tokens)
        assert self._proposer is not None
        self._proposer.upload(parity, grid.rows)
        captured = self._captured.proposals.get(size)
        if captured is None:
            self._proposer.propose(inputs, grid.stride, grid.num_turns)
        else:
            captured()
        host = self._host[parity][: grid.num_tokens]
        host.copy_(inputs.token_ids[: grid.num_tokens], non_blocking=True)
        return Proposed(host.numpy(), self._runtime.mark())

    def follow(self, grid: Grid, size: StepSize, proposed: Proposed | None) -> None:
        """Holds guesses against grammars while the model computes: rows are drawn no further than what they allow."""
        guided = {index: grid.rows[index].token_ids[1:] for index in grid.guided}
        if not guided:
            return
        if proposed is not None and any(DRAFT in guesses for guesses in guided.values()):
            proposed.wait()
            for index, guesses in guided.items():
                if DRAFT in guesses:
                    guided[index] = proposed.tokens[list(grid.places(index)[1:])].tolist()
        for index, guesses in guided.items():
            if (look_ahead := grid.rows[index].look_ahead) is not None:
                look_ahead(guesses)
        later = [row.draws[1:] for row in grid.rows]
        for index, guesses in guided.items():
            found = followed(grid.rows[index], guesses)
            num_allowed = len(found.token_ids)
            later[index] = found.draws[1 : 1 + num_allowed]
            grid.refused.update(grid.places(index)[1 + num_allowed :])
        self._drawing.set_later_masks(grid, later)
        if grid.refused:
            places = to_device(self._runtime, np.array(sorted(grid.refused), np.int64))
            self._inputs.of(size.num_tokens).rows.index_fill_(0, places, -1)

    def verified(self, rows: Sequence[Row], guesses: Sequence[Guesses]) -> None:
        """These were the guesses made here for these rows, as their step is done."""
        if self._proposer is not None:
            self._proposer.verified(rows, guesses)

    def retire(self, seq_id: int) -> None:
        if self._proposer is not None:
            self._proposer.retire(seq_id)
