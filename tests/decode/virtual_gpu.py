"""An engine that writes known texts in virtual time, as long as steps of a small model take on a GPU.

The device has a step in flight while the host plans the next; a step that waits for guesses has both one after the
other. What steps take varies at random, and some are held up.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from isthmus.bench.known_texts import KnownTexts
from isthmus.engine.plan import Plan, Result

MS = 1e-3
HELD_UP, NOISE = 0.005, 0.03


@dataclass(slots=True)
class VirtualClock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class Costs:
    """ms, of so many rows, guesses, and the most of a row, or rows with guesses."""

    device: Callable[[int, int, int], float]
    launch: Callable[[int, int], float]
    apply: Callable[[int], float]


GPU = Costs(
    device=lambda rows, _, most: max(0.31 + 0.019 * rows, (0.08 * most + 0.03 * min(rows, 16) + 0.18) * (most > 0)),
    launch=lambda rows, guessing: 0.13 + 0.01 * rows + (0.05 + 0.013 * guessing if guessing else 0.0),
    apply=lambda rows: 0.07 + 0.0065 * rows,
)
BIG = Costs(
    device=lambda rows, _, most: 4.1 + 0.05 * rows + (1.2 + 0.1 * most if most else 0.0),
    launch=lambda rows, guessing: 0.2 + 0.01 * rows + (0.05 if guessing else 0.0),
    apply=lambda rows: 0.1,
)
"""About as a model of 8B parameters."""
CPU = Costs(device=lambda rows, guesses, _: 40.0 + 6.0 * (rows + guesses), launch=lambda *_: 0.2, apply=lambda _: 0.1)


@dataclass(slots=True)
class VirtualStep:
    plan: Plan
    ready_at: float
    engine: "VirtualGpu"
    tokens: list[int] | None = None

    def draw(self) -> None:
        if self.tokens is None:
            self.tokens = self.engine.drawn(self.plan)

    def result(self) -> Result:
        self.draw()
        assert self.tokens is not None
        self.engine.finish(self)
        return Result(self.tokens)


@dataclass(slots=True)
class VirtualGpu(KnownTexts):
    """On a CPU `launch` returns when the step is done. Masks take no time."""

    clock: VirtualClock
    costs: Costs
    rng: random.Random
    _busy_until: float = field(init=False, default=0.0)

    def launch(self, plan: Plan) -> VirtualStep:
        self.draw_last()
        rows, guesses = len(plan.rows), [row.num_drafts for row in plan.rows]
        self.clock.now += MS * self._noisy(self.costs.launch(rows, sum(map(bool, guesses))))
        takes = MS * self._noisy(self.costs.device(rows, sum(guesses), max(guesses)))
        self._busy_until = max(self._busy_until, self.clock.now) + takes
        step = VirtualStep(plan, self._busy_until, self)
        if plan.waits_for_tokens:
            self.undrawn = step
        else:
            step.draw()
        return step

    def finish(self, step: VirtualStep) -> None:
        takes = self._noisy(self.costs.apply(len(step.plan.rows)))
        self.clock.now = max(self.clock.now, step.ready_at) + MS * takes

    def _noisy(self, takes: float) -> float:
        held_up = 2 * self.rng.random() if self.rng.random() < HELD_UP else 0.0
        return takes * (1 + held_up + abs(self.rng.gauss(0, NOISE)))
