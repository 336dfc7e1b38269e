"""Rounds of a benchmark of several methods: who takes turns with whom, and what each is held against.

A machine's pace drifts by more than what is to be told apart. So engines that launch their steps ahead, which cannot
take turns step by step, have a round without speculation before each round of a method and after it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .batch_decoder import BatchDecoder, Request, Run, Steps, run_all

MOST_ROUNDS = 128
"""Of a case."""


@dataclass(frozen=True, slots=True)
class Case:
    task: str
    temperature: float
    batch: int
    least_rounds: int
    requests: Callable[[int], Sequence[Request]]
    """Of a round, by its number."""


@dataclass(slots=True)
class Measured:
    """Of one method in one case."""

    rounds: list[Steps] = field(default_factory=list)
    off: list[Steps] = field(default_factory=list)
    """Without speculation, at the time of each round."""
    outputs: list[list[int]] = field(default_factory=list)

    def add(self, run: Run, off: Steps) -> None:
        self.rounds.append(run.steps)
        self.off.append(off)
        self.outputs += run.outputs

    @property
    def steps(self) -> Steps:
        return sum(self.rounds, Steps())

    @property
    def ratios(self) -> list[float]:
        """Of paces, of two rounds at a time: where turns are taken step by step, one in each order. A round that was
        held up, by whatever else the machine does, makes one of them an outlier."""
        return [pace_ratio(mine, its) for mine, its in zip(_pairs(self.rounds), _pairs(self.off), strict=True)]


def measure(
    case: Case, off: BatchDecoder, others: Mapping[str, BatchDecoder], *, backwards: bool, least_s: float = 0.0
) -> tuple[Measured, dict[str, Measured]]:
    """Of `off` and of each other method, by name. Rounds go on until each has been measured for `least_s`, an even
    number of them."""
    plain, found = Measured(), {name: Measured() for name in others}
    overlap = any(decoder.engine.overlaps for decoder in (off, *others.values()))
    while _goes_on(case, [plain, *found.values()], least_s):
        requests = case.requests(len(plain.rounds))
        turns = _between if overlap else _step_by_step
        first, beside, runs = turns(requests, case.batch, off, list(others.values()), backwards=backwards)
        plain.add(first, first.steps)
        for one, run, steps in zip(found.values(), runs, beside, strict=True):
            one.add(run, steps)
        backwards = not backwards
    return plain, found


Round = tuple[Run, Sequence[Steps], Sequence[Run]]
"""Without speculation, once; and what each of the others is held against, and they."""


def _step_by_step(
    requests: Sequence[Request], batch: int, off: BatchDecoder, others: Sequence[BatchDecoder], *, backwards: bool
) -> Round:
    decoders = [off, *others]
    order = -1 if backwards else 1
    runs = run_all([one.turns(requests, batch) for one in decoders[::order]])[::order]
    return runs[0], [runs[0].steps] * len(others), runs[1:]


def _between(
    requests: Sequence[Request], batch: int, off: BatchDecoder, others: Sequence[BatchDecoder], *, backwards: bool
) -> Round:
    order = -1 if backwards else 1
    plain, runs = [off.run(requests, batch)], []
    for one in others[::order]:
        runs.append(one.run(requests, batch))
        plain.append(off.run(requests, batch))
    beside = [before.steps + after.steps for before, after in pairwise(plain)]
    return plain[0], beside[::order], runs[::order]


def _goes_on(case: Case, found: Sequence[Measured], least_s: float) -> bool:
    num_rounds = len(found[0].rounds)
    if num_rounds < case.least_rounds:
        return True
    is_short = min(one.steps.elapsed_s for one in found) < least_s
    return least_s > 0 and num_rounds < MOST_ROUNDS and (num_rounds % 2 == 1 or is_short)


def _pairs(rounds: Sequence[Steps]) -> Sequence[Steps]:
    """Sums of two rounds; one that is left alone by an odd number counts only where it is the only one."""
    return [a + b for a, b in zip(rounds[::2], rounds[1::2], strict=False)] or rounds


def pace_ratio(mine: Steps, other: Steps) -> float:
    return mine.tokens_per_s / other.tokens_per_s if other.tokens_per_s else 0.0
