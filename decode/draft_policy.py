"""How many tokens to guess at once: as many as come sooner with guesses than without.

A row with k guesses, each right with probability r if those before it are, gives 1 + r + … + r^k tokens. What steps
take without guesses and with is measured (draft_costs). That number of guesses a row is chosen which gives most tokens
a second, if it promises enough for what guesses have gained and lost so far (draft_account). What does not pay is
tried now and then, the rarer the less it paid.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

from .decoded_step import DecodedStep
from .draft_costs import DraftCosts
from .guess_costs import FIRST_PROBE_STEPS, PROBE_GUESSES, GuessCosts, Slopes, about
from .plain_steps import PlainSteps, octave

LEAST_RATE = 0.05
"""Of the last guess of a row, that it is right."""
LOOK_SHARE = 0.004
"""Of the time, that looks may take: steps are short where a small model runs on a GPU."""
MOST_SEARCH_STEPS = 64
"""From one look to the next, though a first one, which reads a prompt, took long."""
PLAIN_PARTS = 10
"""What pays is reckoned anew when a plain step takes a tenth longer or shorter."""
NUM_RATES = 20
RATES = [step / NUM_RATES for step in range(1, NUM_RATES)]
"""That are told apart."""
NEAREST = [RATES[0], *RATES, RATES[-1]]
"""Of them, by NUM_RATES times a rate."""
Kind = tuple[float, int]
"""Of rows: which of RATES, and how many guesses they may have."""


class DraftPolicy:
    def __init__(self) -> None:
        self._guesses: dict[int, GuessCosts] = {}
        """By octaves of sizes."""
        self._slopes, self._plain = Slopes(), PlainSteps()
        self._last_guesses: GuessCosts | None = None
        """Those of the last step, if it had any."""
        self._costs: dict[int, DraftCosts] = {}
        """By sizes; those that are `about` the same share theirs."""
        self._num_steps = 0

    def least_rate(self, num_rows: int, limit: int) -> tuple[float, bool]:
        """(how often guesses must be right to pay, were there `limit` for each of so many rows, 1 for never; whether it
        is time to try what does not), as far as it is known: see `knows`."""
        costs = self._of(num_rows)
        bar, guesses = costs.last_bar, costs.guesses
        if bar is None:
            return 1.0, False
        if guesses.is_curious:
            return 0.0, True
        known = bar, guesses.version, round(PLAIN_PARTS * math.log(costs.plain_s or 1.0))
        if costs.reckoned != known:
            costs.least_rate, costs.reckoned = _least_rate(limit, num_rows, costs, bar), known
        return costs.least_rate, False

    def search_steps(self, num_rows: int, look_s: float) -> int:
        """From a step of so many rows, in which looks for guesses took `look_s`, to the next, that they take little of
        the time."""
        costs = self._of(num_rows)
        plain_s = costs.plain_s
        steps = math.ceil(look_s / (LOOK_SHARE * plain_s)) if plain_s else 1
        return min(steps, MOST_SEARCH_STEPS)

    def pays(self, rates: Sequence[float], limits: Sequence[int], num_rows: int, num_looked: int | None = None) -> bool:
        """Whether `lengths` would be more than 0. `num_looked`: rows, if others are like those."""
        costs = self._of(num_rows)
        bar = costs.bar
        if not any(limits) or bar is None:
            return False
        if num_looked is None and costs.guesses.is_curious:
            return True
        each = 1 if num_looked is None else num_rows / num_looked
        groups = {kind: count * each for kind, count in Counter(_kinds(rates, limits)).items()}
        return _choose(groups, num_rows, costs, bar)[0] > 0

    def lengths(
        self, rates: Sequence[float], limits: Sequence[int], num_rows: int, *, waits: bool = False
    ) -> list[int]:
        """Guesses of some rows of a batch of `num_rows`, given how often they are right, and how many each may have.
        `waits`: the step has waited for the one before it, so what that costs is no reason to have none."""
        costs = self._of(num_rows)
        bar, guesses = costs.bar, costs.guesses
        if not any(limits) or bar is None:
            return [0] * len(rates)
        kinds = _kinds(rates, limits)
        groups = Counter(kinds)
        most, gain = _choose(groups, num_rows, costs, bar, waits=waits)
        if most:
            guesses.probe_steps, guesses.promise = FIRST_PROBE_STEPS, gain
        elif guesses.is_curious:
            guesses.probe_steps = min(2 * guesses.probe_steps, costs.rarest_probe_steps(PROBE_GUESSES))
            return _one_of(limits)
        guesses.longest_tried = max(guesses.longest_tried, most)
        lengths = {kind: _outcome(*kind, most)[0] for kind in groups}
        return [lengths[kind] for kind in kinds]

    def knows(self, num_rows: int) -> bool:
        """What a plain step takes, of late."""
        return self._of(num_rows).is_known

    def has_known(self, num_rows: int) -> bool:
        """What a plain step took before."""
        return self._of(num_rows).plain_s is not None

    def record(self, step: DecodedStep) -> None:
        self._num_steps += step.num_steps
        costs = self._of(step.num_rows)
        costs.take_in(step, self._last_guesses)
        self._last_guesses = costs.guesses if step.num_drafts else None

    def _of(self, num_rows: int) -> DraftCosts:
        costs = self._costs.get(num_rows)
        if costs is None:
            number = about(num_rows)
            known = self._costs.get(number)
            costs = known or DraftCosts(number, self._guesses_of(octave(number)), self._plain)
            self._costs[number] = self._costs[num_rows] = costs
        costs.now = self._num_steps
        return costs

    def _guesses_of(self, number: int) -> GuessCosts:
        if number not in self._guesses:
            self._guesses[number] = GuessCosts(
                number, self._slopes, self._guesses_of(number - 1) if number > 1 else None
            )
        return self._guesses[number]


def _least_rate(limit: int, num_rows: int, costs: DraftCosts, bar: float) -> float:
    """The lowest of RATES at which a batch whose rows may all have `limit` guesses is to have some; 1 for none."""
    plain_s, least = costs.plain_s, len(RATES)
    if plain_s is None:
        return 1.0
    for length in range(1, min(limit, 2 * costs.guesses.longest_tried) + 1):
        wanted = bar * costs.slowdown(length * num_rows, plain_s) - 1
        least = bisect_right(_num_right(length), wanted, hi=least)
    return RATES[least] if least < len(RATES) else 1.0


@cache
def _num_right(length: int) -> list[float]:
    """Of so many guesses of a row, for each of RATES; none where a row does not have so many."""
    outcomes = [_outcome(rate, length, length) for rate in RATES]
    return [num_right if found == length else 0.0 for found, num_right in outcomes]


def _one_of(limits: Sequence[int]) -> list[int]:
    """A try of one row."""
    lengths = [0] * len(limits)
    index = next(index for index, limit in enumerate(limits) if limit)
    lengths[index] = min(PROBE_GUESSES, limits[index])
    return lengths


def _kinds(rates: Sequence[float], limits: Sequence[int]) -> list[Kind]:
    """Of each row."""
    return [(NEAREST[int(rate * NUM_RATES + 0.5)], limit) for rate, limit in zip(rates, limits, strict=True)]


def _choose(
    groups: Mapping[Kind, float], num_rows: int, costs: DraftCosts, bar: float, *, waits: bool = False
) -> tuple[int, float]:
    """The most guesses of a row with which a step of `num_rows`, of which there are so many of each kind, gives most
    tokens a second, and how many times as many as without; 0 if no number gives `bar` times as many."""
    best, best_gain, plain_s = 0, bar, costs.plain_s
    if plain_s is None:
        return best, best_gain
    longest, most = min(2 * costs.guesses.longest_tried, max(limit for _, limit in groups)), 1
    while most // 2 < longest:
        num_guesses, num_tokens = 0.0, float(num_rows)
        for (rate, limit), count in groups.items():
            length, num_right = _outcome(rate, limit, most)
            num_guesses += count * length
            num_tokens += count * num_right
        slowdown = costs.slowdown(round(num_guesses), plain_s, waits=waits)
        gain = num_tokens / num_rows / slowdown if num_guesses else 0.0
        if gain > best_gain:
            best, best_gain = most, gain
        most *= 2
    return best, best_gain


@cache
def _outcome(rate: float, limit: int, most: int) -> tuple[int, float]:
    """Of a row: how many guesses it has, so many that the last is likely enough to be right, and how many are."""
    length = min(limit, most, max(1, math.floor(math.log(LEAST_RATE) / math.log(rate))))
    return length, rate * (1 - rate**length) / (1 - rate)
