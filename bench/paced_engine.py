"""An engine without a model that writes down texts it knows, at the pace of a GPU: steps take a set time, nothing else.

As on a GPU, a step begins when it is launched, or when the one before it ends; masks are asked for, and guesses held
against grammars, while it computes. What is left of a turn is what the host takes.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..engine.plan import DRAFT, Plan, Result, Row
from .known_texts import KnownTexts

SPIN_S = 1e-4
"""Before the end of a wait, as sleep may be late by about so much."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds."""

    step_s: float
    guesses_s: float
    """What a step takes longer that has guesses."""
    evicted_kb: int = 0
    """Copied with each launch: a GPU's driver and libraries do much then, so that code and data of a worker that are
    not used in each step are in no cache when they are."""


@dataclass(slots=True)
class _Step:
    plan: Plan
    engine: "PacedEngine"
    tokens: list[int] | None = None
    ready_at: float = 0.0

    def draw(self) -> None:
        if self.tokens is None:
            self.tokens = self.engine.drawn(self.plan)
            self.ready_at = self.engine.end_step()

    def result(self) -> Result:
        self.draw()
        assert self.tokens is not None
        self.engine.wait_until(self.ready_at)
        return Result(self.tokens)


@dataclass(slots=True)
class PacedEngine(KnownTexts):
    pace: Pace
    right: float = 0.0
    """How often the guesses are right that are left to the engine."""
    _rng: random.Random = field(init=False, default_factory=lambda: random.Random(0))
    _copied: np.ndarray = field(init=False)
    _busy_until: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._copied = np.zeros((2, self.pace.evicted_kb << 9), np.uint8)

    def launch(self, plan: Plan) -> _Step:
        self.draw_last()
        np.copyto(self._copied[0], self._copied[1])
        takes_s = self.pace.step_s + self.pace.guesses_s * any(row.num_drafts for row in plan.rows)
        self._busy_until = max(self._busy_until, time.monotonic()) + takes_s
        step = _Step(plan, self)
        if plan.waits_for_tokens:
            self.undrawn = step
        else:
            step.draw()
        return step

    def guesses(self, row: Row) -> Sequence[int]:
        """See KnownTexts. A wrong one is another token of the text."""
        given = row.token_ids[1:]
        if DRAFT not in given:
            return given
        text, first = self._writing[row.seq_id], row.draws[0].position
        known = [*text[first : first + len(given)], *text][: len(given)]
        return [token if self._rng.random() < self.right else self._other(text, token) for token in known]

    def _other(self, text: Sequence[int], token: int) -> int:
        return self._rng.choice([one for one in text if one != token] or [token])

    def end_step(self) -> float:
        """When the step that was launched last is done, whose masks are there now."""
        self._busy_until = max(self._busy_until, time.monotonic())
        return self._busy_until

    def wait_until(self, ready_at: float) -> None:
        left_s = ready_at - time.monotonic()
        if left_s > SPIN_S:
            time.sleep(left_s - SPIN_S)
        while time.monotonic() < ready_at:
            pass
