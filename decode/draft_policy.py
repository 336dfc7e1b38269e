"""How many tokens to guess at once: as many as come sooner with guesses than without.

The k-th guess of a row gives rate^k tokens, for the time that a guess adds to a step. In that time the worker would
give some tokens without it too: where the guess gives fewer, it is left out. What steps and guesses take is measured,
for each size of the batch; a step of each kind is tried now and then, the rarer the less it paid.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

NUM_SAMPLES = 5
"""Of each measurement the median of so many counts: a step that was held up once says nothing."""
FIRST_PLAIN_STEPS = 3
"""Without guesses, before any are made."""
REFRESH_STEPS = 64
"""After which a step without guesses is measured again."""
LEAST_RATE = 0.02
"""A guess that is right less often is not made, however little it seems to take."""
LOOK_S = 3e-6
"""A look for a guess of one sequence, about."""
LOOK_SHARE = 0.02
"""Of a step, that looks may take: it is short where a small model runs on a GPU."""
FIRST_PROBE_STEPS, LAST_PROBE_STEPS = 32, 1024
"""Steps between two tries of guesses that do not pay."""


def _samples() -> "deque[float]":
    return deque(maxlen=NUM_SAMPLES)


@dataclass(slots=True)
class _Costs:
    """Of batches of one size, in seconds."""

    plain: "deque[float]" = field(default_factory=_samples)
    """Steps without guesses."""
    plain_age: int = 0
    """Steps since the last of those."""
    guess: "deque[float]" = field(default_factory=_samples)
    """What a guess added, less than nothing included."""
    quiet_steps: int = 0
    """Since guesses were made."""
    probe_steps: int = FIRST_PROBE_STEPS

    @property
    def is_known(self) -> bool:
        return len(self.plain) >= FIRST_PLAIN_STEPS and self.plain_age < REFRESH_STEPS

    @property
    def plain_s(self) -> float:
        return median(self.plain)

    @property
    def guess_s(self) -> float:
        return max(0.0, median(self.guess)) if self.guess else 0.0


class DraftPolicy:
    def __init__(self) -> None:
        self._costs: dict[int, _Costs] = {}

    def least_rate(self, num_rows: int) -> tuple[float, bool]:
        """(how often a guess must be right to pay in a batch of so many rows, 1 for never; whether it is time to try
        those that are not)."""
        costs = self._of(num_rows)
        if not costs.is_known:
            return 1.0, False
        if costs.quiet_steps >= costs.probe_steps:
            return LEAST_RATE, True
        return min(1.0, _least_rate(costs, num_rows / costs.plain_s)), False

    def search_steps(self, num_rows: int) -> int:
        """Steps from one look for guesses to the next, that all looks together take little of a step."""
        costs = self._of(num_rows)
        return math.ceil(LOOK_S * num_rows / (LOOK_SHARE * costs.plain_s)) if costs.is_known else 1

    def lengths(self, rates: Sequence[float], limits: Sequence[int], num_rows: int) -> list[int]:
        """Guesses of some rows of a batch of `num_rows`, given how often they are right, and how many each may have."""
        costs = self._of(num_rows)
        if not any(limits) or not costs.is_known:
            return [0] * len(rates)
        wanted = _worthwhile(rates, limits, costs, num_rows)
        if any(wanted):
            costs.probe_steps = FIRST_PROBE_STEPS
        elif costs.quiet_steps >= costs.probe_steps:
            costs.probe_steps = min(2 * costs.probe_steps, LAST_PROBE_STEPS)
            wanted = [min(1, limit) for limit in limits]
        return wanted

    def record(self, num_rows: int, num_drafts: int, elapsed_s: float) -> None:
        """What a step took that computed nothing but these rows and guesses."""
        costs = self._of(num_rows)
        if not num_drafts:
            costs.plain.append(elapsed_s)
            costs.plain_age = 0
            costs.quiet_steps += 1
        elif costs.plain:
            costs.guess.append((elapsed_s - costs.plain_s) / num_drafts)
            costs.plain_age += 1
            costs.quiet_steps = 0

    def give_up(self, num_rows: int) -> None:
        """The engine tries no guesses in such batches: nor does this, for a while."""
        costs = self._of(num_rows)
        costs.guess.extend([costs.plain_s] * NUM_SAMPLES)
        costs.quiet_steps = 0

    def _of(self, num_rows: int) -> _Costs:
        """Sizes up to 8 each have their own, above four share an octave."""
        shift = max(0, num_rows.bit_length() - 3)
        return self._costs.setdefault(num_rows >> shift << shift, _Costs())


def _worthwhile(rates: Sequence[float], limits: Sequence[int], costs: _Costs, num_rows: int) -> list[int]:
    """The pace grows by the guesses, and with it what a guess must give: twice around is close enough."""
    tokens_per_s, wanted = num_rows / costs.plain_s, list(limits)
    for _ in range(2):
        least = _least_rate(costs, tokens_per_s)
        wanted = [_longest(rate, limit, least) for rate, limit in zip(rates, limits, strict=True)]
        num_tokens = num_rows + sum(map(_expected, rates, wanted))
        tokens_per_s = max(tokens_per_s, num_tokens / (costs.plain_s + costs.guess_s * sum(wanted)))
    return wanted


def _least_rate(costs: _Costs, tokens_per_s: float) -> float:
    """In the time that a guess adds, a worker at this pace gives so much of a token anyway."""
    return max(LEAST_RATE, costs.guess_s * tokens_per_s)


def _longest(rate: float, limit: int, least: float) -> int:
    """The most guesses of which the last is right with probability `least` or more."""
    if not limit or rate < least:
        return 0
    return min(limit, math.floor(math.log(least) / math.log(rate)))


def _expected(rate: float, count: int) -> float:
    """Of `count` guesses, how many are right."""
    return rate * (1 - rate**count) / (1 - rate)
