"""Rounds of a benchmark of several methods: who takes turns with whom, and what each is held against.

A machine's pace drifts by more than what is to be told apart. So engines that launch their steps ahead, which cannot
take turns step by step, have a round without speculation before each round of a method and after it.

Two engines that are alike differ as well, by a hundredth and more where steps are short, for as long as their process
lives. So there may be several for each method, which take turns; what is told is the mean over them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from statistics import mean, median

from .batch_decoder import BatchDecoder, Request, Run, Steps, run_all

DEVIATIONS = 1.4826 * 1.2533
"""Of what is normally distributed: standard errors of the median of n samples, in median deviations / sqrt n."""


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

    num_engines: int = 1
    """They take turns, two rounds at a time."""
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

    @property
    def by_engine(self) -> list[float]:
        return [median(ratios) for ratios in self._ratios_by_engine if ratios]

    @property
    def ratio(self) -> float:
        return mean(self.by_engine)

    @property
    def error(self) -> float:
        """Of the ratio, for these engines: a standard error, by how far those of each lie apart; infinite where one has
        but one."""
        many = self._ratios_by_engine
        return math.hypot(*(_error(ratios) for ratios in many)) / len(many)

    @property
    def _ratios_by_engine(self) -> list[list[float]]:
        ratios = self.ratios
        return [ratios[first :: self.num_engines] for first in range(self.num_engines)]


@dataclass(frozen=True, slots=True)
class Until:
    """Rounds go on until each engine has as many, in either order. One engine has just the least, if no precision is
    asked for."""

    precision: float = math.inf
    """The error of every ratio is to be no more than this,"""
    most_rounds: int = 24
    """if that takes no more of them."""

    def is_reached(self, found: Sequence[Measured], num_rounds: int, num_engines: int) -> bool:
        is_known = all(one.error <= self.precision for one in found)
        takes_turns = num_engines > 1 or self.precision < math.inf
        if takes_turns and num_rounds % (2 * num_engines):
            return False
        return is_known or num_rounds >= self.most_rounds


Decoders = Sequence[BatchDecoder]
"""Of one method, around an engine each."""


def measure(
    case: Case, off: Decoders, others: Mapping[str, Decoders], *, backwards: bool, until: Until = Until()
) -> tuple[Measured, dict[str, Measured]]:
    """Of `off` and of each other method, by name, which have as many engines."""
    num_engines, number = len(off), 0
    plain, found = Measured(num_engines), {name: Measured(num_engines) for name in others}
    overlap = any(decoder.engine.overlaps for decoder in chain(off, *others.values()))
    while number < case.least_rounds or not until.is_reached(list(found.values()), number, num_engines):
        requests, index = case.requests(number), number // 2 % num_engines
        turns, now = _between if overlap else _step_by_step, [decoders[index] for decoders in others.values()]
        first, beside, runs = turns(requests, case.batch, off[index], now, backwards=backwards)
        plain.add(first, first.steps)
        for one, run, steps in zip(found.values(), runs, beside, strict=True):
            one.add(run, steps)
        backwards, number = not backwards, number + 1
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


def _error(ratios: Sequence[float]) -> float:
    """Of their median."""
    if len(ratios) < 2:
        return math.inf
    middle = median(ratios)
    return DEVIATIONS * median(abs(one - middle) for one in ratios) / math.sqrt(len(ratios))


def _pairs(rounds: Sequence[Steps]) -> Sequence[Steps]:
    """Sums of two rounds; one that is left alone by an odd number counts only where it is the only one."""
    return [a + b for a, b in zip(rounds[::2], rounds[1::2], strict=False)] or rounds


def pace_ratio(mine: Steps, other: Steps) -> float:
    return mine.tokens_per_s / other.tokens_per_s if other.tokens_per_s else 0.0
