"""How many tokens to guess at once: as many as come sooner with guesses than without.

A row with k guesses, each right with probability r if those before it are, gives 1 + r + … + r^k tokens. What steps
take without guesses and with is measured (draft_costs). That number of guesses a row is chosen which gives most tokens
a second, if it promises enough for what guesses have gained and lost so far (draft_account). What does not pay is
tried now and then, the rarer the less it paid.
"""

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

from .decoded_step import DecodedStep
from .draft_account import DraftAccount
from .draft_costs import FIRST_PROBE_STEPS, PROBE_GUESSES, DraftCosts, about

LEAST_RATE = 0.05
"""Of the last guess of a row, that it is right."""
LOOK_SHARE = 0.004
"""Of the time, that looks may take: steps are short where a small model runs on a GPU."""
MOST_SEARCH_STEPS = 64
"""From one look to the next, though a first one, which reads a prompt, took long."""
NUM_RATES = 20
RATES = [step / NUM_RATES for step in range(1, NUM_RATES)]
"""That are told apart."""


class DraftPolicy:
    def __init__(self) -> None:
        self._accounts: defaultdict[int, DraftAccount] = defaultdict(DraftAccount)
        """By octaves of sizes: each may lose something at once."""
        self._costs: dict[int, DraftCosts] = {}
        """By sizes; those that are `about` the same share theirs."""
        self._num_steps = 0

    def least_rate(self, num_rows: int, limit: int) -> tuple[float, bool]:
        """(how often guesses must be right to pay, were there `limit` for each of so many rows, 1 for never; whether it
        is time to try what does not)."""
        costs = self._of(num_rows)
        bar = costs.account.bar
        if not costs.is_known or bar is None:
            return 1.0, False
        if costs.is_curious:
            return LEAST_RATE, True
        if costs.least_rate is None or costs.least_gain != bar:
            costs.least_rate, costs.least_gain = _least_rate(limit, num_rows, costs, bar), bar
        return costs.least_rate, False

    def search_steps(self, num_rows: int, look_s: float) -> int:
        """From a step of so many rows, in which looks for guesses took `look_s`, to the next, that they take little of
        the time."""
        costs = self._of(num_rows)
        steps = math.ceil(look_s / (LOOK_SHARE * costs.plain_s)) if costs.is_known else 1
        return min(steps, MOST_SEARCH_STEPS)

    def pays(self, rates: Sequence[float], limits: Sequence[int], num_rows: int) -> bool:
        """Whether `lengths` would be more than 0."""
        costs = self._of(num_rows)
        bar = costs.account.bar
        if not any(limits) or not costs.is_known or bar is None:
            return False
        return costs.is_curious or _choose(_groups(rates, limits), num_rows, costs, bar)[0] > 0

    def lengths(self, rates: Sequence[float], limits: Sequence[int], num_rows: int) -> list[int]:
        """Guesses of some rows of a batch of `num_rows`, given how often they are right, and how many each may have."""
        costs = self._of(num_rows)
        bar = costs.account.bar
        if not any(limits) or not costs.is_known or bar is None:
            return [0] * len(rates)
        most, gain = _choose(_groups(rates, limits), num_rows, costs, bar)
        if most:
            costs.probe_steps, costs.promise = FIRST_PROBE_STEPS, gain
        elif costs.is_curious:
            costs.probe_steps = min(2 * costs.probe_steps, costs.rarest_probe_steps(PROBE_GUESSES))
            return _one_of(limits)
        costs.longest_tried = max(costs.longest_tried, most)
        return [_longest(_about_rate(rate), min(limit, most)) for rate, limit in zip(rates, limits, strict=True)]

    def knows(self, num_rows: int) -> bool:
        """What a plain step takes."""
        return self._of(num_rows).is_known

    def record(self, step: DecodedStep) -> None:
        self._num_steps += step.num_steps
        costs = self._of(step.num_rows)
        costs.take_in(step)
        if step.num_drafts and not step.num_tried:
            costs.give_up(step.num_rows)

    def _of(self, num_rows: int) -> DraftCosts:
        costs = self._costs.get(num_rows)
        if costs is None:
            number = about(num_rows)
            known = self._costs.get(number)
            costs = DraftCosts(self._accounts[number.bit_length()]) if known is None else known
            self._costs[number] = self._costs[num_rows] = costs
        costs.now = self._num_steps
        return costs


def _least_rate(limit: int, num_rows: int, costs: DraftCosts, gain: float) -> float:
    """The lowest of RATES at which a batch whose rows may all have `limit` guesses is to have some; 1 for none."""
    index = bisect_left(RATES, True, key=lambda rate: _choose({(rate, limit): num_rows}, num_rows, costs, gain)[0] > 0)
    return RATES[index] if index < len(RATES) else 1.0


def _one_of(limits: Sequence[int]) -> list[int]:
    """A try of one row."""
    lengths = [0] * len(limits)
    index = next(index for index, limit in enumerate(limits) if limit)
    lengths[index] = min(PROBE_GUESSES, limits[index])
    return lengths


def _groups(rates: Sequence[float], limits: Sequence[int]) -> Counter[tuple[float, int]]:
    """How many rows have about this rate, and this limit."""
    return Counter(zip(map(_about_rate, rates), limits, strict=True))


def _choose(groups: Mapping[tuple[float, int], int], num_rows: int, costs: DraftCosts, bar: float) -> tuple[int, float]:
    """The most guesses of a row with which a step of `num_rows`, some of which are in `groups`, gives most tokens a
    second, and how many times as many as without; 0 if no number gives `bar` times as many."""
    best, best_gain = 0, bar
    longest, most = min(2 * costs.longest_tried, max(limit for _, limit in groups)), 1
    while most // 2 < longest:
        num_guesses, num_tokens = 0, float(num_rows)
        for (rate, limit), count in groups.items():
            length = _longest(rate, min(limit, most))
            num_guesses += count * length
            num_tokens += count * _expected(rate, length)
        gain = num_tokens / num_rows * costs.plain_s / costs.guessing_s(num_guesses) if num_guesses else 0.0
        if gain > best_gain:
            best, best_gain = most, gain
        most *= 2
    return best, best_gain


@cache
def _longest(rate: float, limit: int) -> int:
    """The most guesses of which the last is likely enough to be right."""
    return max(1, min(limit, math.floor(math.log(LEAST_RATE) / math.log(rate)))) if limit else 0


@cache
def _expected(rate: float, count: int) -> float:
    """Of `count` guesses, how many are right."""
    return rate * (1 - rate**count) / (1 - rate)


def _about_rate(rate: float) -> float:
    """That of RATES which is nearest."""
    return RATES[min(max(1, round(rate * NUM_RATES)), NUM_RATES - 1) - 1]
