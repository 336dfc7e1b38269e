"""An engine without a model that writes down texts it knows, at the pace of a GPU: steps take a set time, nothing else.

As on a GPU, a step begins when it is launched, or when the one before it ends; masks are asked for, and guesses held
against grammars, while it computes. What is left of a turn is what the host takes.
"""

import time
from dataclasses import dataclass, field

from ..engine.plan import Plan, Result
from .known_texts import KnownTexts

SPIN_S = 1e-4
"""Before the end of a wait, as sleep may be late by about so much."""


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
    step_s: float
    guesses_s: float
    """What a step takes longer that has guesses."""
    waited_s: float = 0.0
    """By the host, for steps: what remains of the time it worked."""
    _busy_until: float = field(init=False, default=0.0)

    def launch(self, plan: Plan) -> _Step:
        self.draw_last()
        takes_s = self.step_s + self.guesses_s * any(row.num_drafts for row in plan.rows)
        self._busy_until = max(self._busy_until, time.monotonic()) + takes_s
        step = _Step(plan, self)
        if plan.waits_for_tokens:
            self.undrawn = step
        else:
            step.draw()
        return step

    def end_step(self) -> float:
        """When the step that was launched last is done, whose masks are there now."""
        self._busy_until = max(self._busy_until, time.monotonic())
        return self._busy_until

    def wait_until(self, ready_at: float) -> None:
        start_s = time.monotonic()
        if ready_at - start_s > SPIN_S:
            time.sleep(ready_at - start_s - SPIN_S)
        while time.monotonic() < ready_at:
            pass
        self.waited_s += time.monotonic() - start_s
