"""The guesses in a scheduler's steps: in which there are some, whose they are, and what came of them; pure."""

from collections.abc import Sequence as Many

from ..engine.block_pool import BlockPool
from ..engine.plan import NO_TOKEN, NOT_TRIED, Result
from .flight import Flight
from .reservations import Reservations
from .sequence import Drawn, Sequence
from .speculation import Speculation

REFUSED_STEPS = 1024
"""Beside prompts, before guesses are tried there again of which the engine left out all."""


class StepGuesses:
    def __init__(
        self, speculation: Speculation, pool: BlockPool, reservations: Reservations, max_num_batched_tokens: int
    ) -> None:
        self._speculation, self._pool, self._reservations = speculation, pool, reservations
        self._max_num_batched_tokens = max_num_batched_tokens
        self._num_steps = self._num_rows = 0
        """And rows of the last one."""
        self._beside_prompts_at = 0
        """From which step on there may be some: later each time that the engine leaves all out there."""
        self._has_begun = False
        """The next step."""
        self._is_quiet = False
        """Speculation is not told of it: see Speculation.passes."""
        self._done: tuple[Flight, Result, float] | None = None
        """The last step that is noted, and what it took, if speculation is yet to be told."""

    # Before a step.

    def begin_step(self, running: Many[Sequence], *, computes_prompts: bool) -> None:
        """Once for each, however often it is called: while the step before is in flight, if one is, as what is done
        then takes no time of a step that waits."""
        if self._has_begun:
            return
        self._has_begun = True
        if self._done is not None:
            self._note()
        self._is_quiet = not computes_prompts and self._speculation.passes(len(running))
        if self._is_quiet:
            return
        if computes_prompts and self._num_steps < self._beside_prompts_at:
            self._speculation.skip_step()
        else:
            self._speculation.begin_step(len(running), lambda: any(one.is_guided for one in running))

    def are_awaited(self, running: Many[Sequence]) -> bool:
        """Whether guesses will pay in a step after the one in flight: then all wait for that, and else nobody."""
        if self._is_quiet or not self._speculation.is_looking:
            return False
        return self._speculation.awaits([(one.speculator, one.tokens) for one in running if one.goes_on])

    def prepare(self, sequences: Many[Sequence]) -> bool:
        """Of the rows of a step: whether there may be any. They take half of what the budget leaves, at most."""
        if self._is_quiet or not self._speculation.is_looking:
            return False
        budget = (self._max_num_batched_tokens - len(sequences)) // 2
        # Nothing is guessed for a sequence with a token in flight.
        rows = [(None if one.pending else one.speculator, one.tokens) for one in sequences]
        self._speculation.prepare(rows, budget)
        return True

    def of(self, sequence: Sequence) -> tuple[int, ...]:
        """Its next tokens, as many as there are blocks for: they take none from anybody."""
        if sequence.speculator is None or not sequence.speculator.wanted or sequence.pending:
            return ()
        drafts = sequence.speculator.propose(sequence.max_drafts)
        size = self._pool.block_size
        end = sequence.num_planned + 1
        end += size * (sequence.num_planned < sequence.num_shared * size)  # take_copy gives up a block
        num_missing = -(-(end + len(drafts)) // size) - len(sequence.table)
        if num_missing > 0:
            count = min(num_missing, max(0, self._pool.num_free - self._reservations.keep_free))
            sequence.table += self._pool.allocate(count, after=sequence.table[-1]) or ()
        return drafts[: len(sequence.table) * size - end]

    def end_step(self, flight: Flight) -> None:
        """It is planned, if there is anything in it."""
        self._has_begun, flight.is_quiet = False, self._is_quiet
        if flight.empty:
            self._speculation.skip_step()
            return
        self._num_steps += 1
        num_rows = len(flight.decoding)
        has_changed, self._num_rows = num_rows != self._num_rows, num_rows
        if self._is_quiet:
            return
        flight.part = self._speculation.end_step(flight.num_drafts)
        if flight.decodes_only:
            flight.num_noted = self._speculation.notes(flight.part, has_changed=has_changed)

    # After one.

    def take_in(self, flight: Flight, result: Result, elapsed_s: float) -> None:
        """Before its sequences do."""
        if flight.is_quiet:
            return
        self._note()
        if flight.num_noted and elapsed_s > 0:
            self._done = flight, result, elapsed_s
        if flight.chunks and flight.num_drafts and result.token_ids.count(NOT_TRIED) == flight.num_drafts:
            self._beside_prompts_at = self._num_steps + REFUSED_STEPS

    def judge(self, sequence: Sequence, drawn: Many[Drawn]) -> None:
        """How many of its guesses were right, if it had some."""
        if sequence.speculator is not None:
            num_tried = sum(token != NOT_TRIED for token, _, _ in drawn) - 1
            num_right = sum(token >= NO_TOKEN for token, _, _ in drawn) - 1
            self._speculation.learn(sequence.speculator, num_tried, num_right)

    def _note(self) -> None:
        """Tells speculation of the last step that it is told of."""
        if self._done is None:
            return
        (flight, result, elapsed_s), self._done = self._done, None
        self._speculation.record(flight.decoded(result, elapsed_s))
