"""How many tokens to guess at once: as many as come sooner with guesses than without.

A row with k guesses, each right with probability r if those before it are, gives 1 + r + … + r^k tokens. What a step
takes without guesses is measured for each size of the batch, and what so and so many guesses add to it: on a CPU about
as much for each, on a GPU mostly something for any at all, as nothing is then planned ahead. That number of guesses a
row is chosen which gives most tokens a second. Steps of each kind are tried now and then, the rarer the less they paid.

Without guesses means without speculation: plain steps, which neither looked for guesses nor waited. On a GPU guesses
also cost the steps around their own, which are then not planned ahead: that is measured, too, and counts for each step
with guesses, the less the longer they go on.

All this may err. So there is an account of what steps with guesses, and those that waited for them, took against plain
ones for the same tokens: gains are paid in, losses paid from it, and a small part of the time is added. The less there
is, the more guesses must promise; where it is spent nothing is guessed. So in the long run no more than that part can
be lost.
"""

import math
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from statistics import median

NUM_SAMPLES = 5
"""Of each measurement the median of so many counts: a step that was held up once says nothing."""
KNOWN_SAMPLES = 3
"""From so many on, then."""
NUM_PLAIN_SAMPLES = 9
"""Everything is held against plain steps."""
FIRST_PLAIN_STEPS = 3
"""Before any guesses are made."""
REFRESH_STEPS = 128
"""After which a plain step is measured again."""
LEAST_GAIN = 1.02
"""Times as many tokens a second, or nothing is guessed."""
LEAST_RATE = 0.05
"""Of the last guess of a row, that it is right."""
PROBE_GUESSES = 2
"""Of one row."""
FIRST_PROBE_STEPS, LAST_PROBE_STEPS = 48, 1024
"""Steps between two tries of guesses that do not pay: at first, and at most."""
PROBE_SHARE = 0.005
"""Of the time, that such tries may take in the end."""
LOSS_SHARE = 0.005
"""Of the time, that guesses may lose in the long run."""
FIRST_CREDIT, MOST_CREDIT = 3, 6
"""Plain steps that may be lost at once: at first, and when much was gained."""
BARS = (MOST_CREDIT / 2, LEAST_GAIN), (0, 1.15), (-MOST_CREDIT, 1.5)
"""What guesses must promise, times as many tokens a second, where there is more credit than so many plain steps."""
HELD_UP = 2.0
"""Times the usual: that a step took longer has to do with something else."""
RECKON_STEPS = 64
"""Without guesses, after which it is reckoned anew what pays."""
OVERHEAD_DECAY = 0.8
"""Of what waiting cost, from one step with guesses to the next."""
LOOK_SHARE = 0.01
"""Of the time, that looks may take: steps are short where a small model runs on a GPU."""
MOST_SEARCH_STEPS = 64
"""From one look to the next, though a first one, which reads a prompt, took long."""
NUM_RATES = 20
RATES = [step / NUM_RATES for step in range(1, NUM_RATES)]
"""That are told apart."""
LEARNT_STEPS = 8
"""With guesses, after which it is reckoned anew what pays."""


class Part(Enum):
    """That speculation had in how a step was planned."""

    NONE = 0
    LOOKED = 1
    """For guesses, no more."""
    WAITED = 2
    """It was not planned ahead, for guesses of its own or of the step before."""


@dataclass(slots=True)
class DecodedStep:
    """What came of a step without prompts."""

    num_rows: int
    elapsed_s: float
    num_drafts: int = 0
    """Guesses that were made."""
    num_tried: int = 0
    """Of those, by the engine."""
    num_right: float = 0
    part: Part = Part.NONE
    num_steps: int = 1
    """So many like it: of plain steps only some are told of."""


class _Median:
    """Of the last samples."""

    __slots__ = ("_samples", "_value")

    def __init__(self, num_samples: int = NUM_SAMPLES) -> None:
        self._samples: deque[float] = deque(maxlen=num_samples)
        self._value: float | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: float) -> None:
        self._samples.append(sample)
        self._value = None

    @property
    def least(self) -> float:
        return min(self._samples)

    @property
    def value(self) -> float:
        if self._value is None:
            self._value = median(self._samples)
        return self._value


@dataclass(slots=True)
class _Account:
    credit: float = FIRST_CREDIT
    """Plain steps."""
    usual: _Median = field(default_factory=_Median)
    """Of what steps with guesses, and those that waited for them, took."""

    @property
    def bar(self) -> float | None:
        """The gain to be promised; None: nothing may be guessed."""
        for credit, gain in BARS:
            if self.credit > credit:
                return gain
        return None

    def earn(self, num_steps: int) -> None:
        """Their share."""
        self.credit = min(MOST_CREDIT, self.credit + LOSS_SHARE * num_steps)

    def settle(self, step: DecodedStep, plain_s: float) -> None:
        """After a step with guesses, or one that waited for them, beside which a plain one takes `plain_s`."""
        self.usual.add(step.elapsed_s)
        spent_s = min(step.elapsed_s, HELD_UP * self.usual.value)
        gain = 1 + step.num_right / step.num_rows - spent_s / plain_s
        self.credit = min(MOST_CREDIT, self.credit + gain)


@dataclass(slots=True)
class _Overhead:
    """What steps without guesses took longer as they waited: after some, or for some that then were none."""

    num_guessing: float = 0.0
    """Steps with guesses, as those below."""
    spent_s: float = 0.0
    """The longer ago, the less it counts."""

    @property
    def value(self) -> float:
        """For each step with guesses."""
        return self.spent_s / max(1.0, self.num_guessing)

    def guess(self) -> None:
        self.num_guessing = OVERHEAD_DECAY * self.num_guessing + 1
        self.fade()

    def fade(self) -> None:
        self.spent_s *= OVERHEAD_DECAY


@dataclass(slots=True)
class _Costs:
    """Of batches of one size, in seconds."""

    plain: _Median = field(default_factory=lambda: _Median(NUM_PLAIN_SAMPLES))
    """Plain steps."""
    plain_age: int = 0
    """Steps since the last of those."""
    longest_tried: int = PROBE_GUESSES // 2
    """Guesses of a row: no more than twice as many are tried next."""
    added: dict[int, _Median] = field(default_factory=dict)
    """What guesses added to their own step, by about how many there were."""
    line: list[tuple[int, float]] = field(default_factory=list)
    """Of those, numbers and what they added, where that is known, or less than the others let expect."""
    overhead: _Overhead = field(default_factory=_Overhead)
    account: _Account = field(default_factory=_Account)
    """One with sizes that are alike."""
    num_learnt: int = 0
    """Steps with guesses."""
    quiet_steps: int = 0
    """Since the last of those."""
    probe_steps: int = FIRST_PROBE_STEPS
    least_rate: float | None = None
    """As last reckoned, of a gain; None if it is to be reckoned anew."""
    least_gain: float = LEAST_GAIN

    @property
    def is_known(self) -> bool:
        return len(self.plain) >= FIRST_PLAIN_STEPS and self.plain_age < REFRESH_STEPS

    @property
    def is_curious(self) -> bool:
        """It is time to try what does not pay."""
        return self.quiet_steps >= self.probe_steps and self.account.credit > 0

    @property
    def plain_s(self) -> float:
        return self.plain.value

    def guessing_s(self, num_guesses: int) -> float:
        """A step with so many, and what it costs others."""
        return self.plain_s + self.added_s(num_guesses) + self.overhead.value

    def added_s(self, num_guesses: int) -> float:
        """Between two numbers that are known on the line between them. For fewer than any, every one counts for half
        of what they on average took, for more than any, for a quarter: so they are tried where that pays. Nothing
        where none is known."""
        return _on_line(self.line, num_guesses)

    def rarest_probe_steps(self, num_guesses: int) -> int:
        """Between two tries of so many guesses."""
        lost_s = self.guessing_s(num_guesses) - self.plain_s
        wanted = math.ceil(lost_s / (PROBE_SHARE * self.plain_s))
        return max(FIRST_PROBE_STEPS, min(wanted, LAST_PROBE_STEPS))

    def take_in(self, step: DecodedStep) -> None:
        self.account.earn(step.num_steps)
        self.plain_age += step.num_steps
        if step.num_drafts or step.part is Part.WAITED:
            if len(self.plain):
                self.account.settle(step, self.plain_s)
        elif step.part is Part.NONE:
            self.plain.add(step.elapsed_s)
            self.plain_age = 0
        if step.num_tried:
            self._learn(step.num_tried, step.elapsed_s)
        else:
            self._rest(step)

    def _learn(self, num_guesses: int, elapsed_s: float) -> None:
        if len(self.plain):
            self.num_learnt += 1
            if self.num_learnt % LEARNT_STEPS == 0:
                self.least_rate = None
            self.added.setdefault(_about(num_guesses), _Median()).add(max(0.0, elapsed_s - self.plain_s))
            self.line = _line(self.added)
        self.overhead.guess()
        self.quiet_steps = 0

    def _rest(self, step: DecodedStep) -> None:
        if step.part is Part.WAITED and len(self.plain):
            longer_s = min(step.elapsed_s, HELD_UP * self.plain_s) - self.plain_s
            self.overhead.spent_s += max(0.0, longer_s)
            self.least_rate = None
        before, self.quiet_steps = self.quiet_steps, self.quiet_steps + step.num_steps
        if before // RECKON_STEPS != self.quiet_steps // RECKON_STEPS:
            self.overhead.fade()
            self.least_rate = None


class DraftPolicy:
    def __init__(self) -> None:
        self._costs: dict[int, _Costs] = {}
        self._accounts: defaultdict[int, _Account] = defaultdict(_Account)
        """By octaves of sizes: each may lose something at once."""

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
        return costs.is_curious or _choose(_groups(rates, limits), num_rows, costs, bar) > 0

    def lengths(self, rates: Sequence[float], limits: Sequence[int], num_rows: int) -> list[int]:
        """Guesses of some rows of a batch of `num_rows`, given how often they are right, and how many each may have."""
        costs = self._of(num_rows)
        bar = costs.account.bar
        if not any(limits) or not costs.is_known or bar is None:
            return [0] * len(rates)
        most = _choose(_groups(rates, limits), num_rows, costs, bar)
        if most:
            costs.probe_steps = FIRST_PROBE_STEPS
        elif costs.is_curious:
            costs.probe_steps = min(2 * costs.probe_steps, costs.rarest_probe_steps(PROBE_GUESSES))
            return _one_of(limits)
        costs.longest_tried = max(costs.longest_tried, most)
        return [_longest(_about_rate(rate), min(limit, most)) for rate, limit in zip(rates, limits, strict=True)]

    def record(self, step: DecodedStep) -> None:
        if step.num_drafts and not step.num_tried:
            self._give_up(step.num_rows)
        else:
            self._of(step.num_rows).take_in(step)

    def _give_up(self, num_rows: int) -> None:
        """The engine tries no guesses in such batches: nor does this, for a while."""
        costs = self._of(num_rows)
        if not len(costs.plain):  # fewer rows than were counted on, and such a batch is not measured yet
            return
        costs.added = {1: _Median()}
        for _ in range(NUM_SAMPLES):
            costs.added[1].add(num_rows * costs.plain_s)
        costs.line = _line(costs.added)
        costs.least_rate = None
        costs.quiet_steps = 0

    def _of(self, num_rows: int) -> _Costs:
        number = _about(num_rows)
        costs = self._costs.get(number)
        if costs is None:
            costs = self._costs[number] = _Costs(account=self._accounts[number.bit_length()])
        return costs


def _least_rate(limit: int, num_rows: int, costs: _Costs, gain: float) -> float:
    """The lowest of RATES at which a batch whose rows may all have `limit` guesses is to have some; 1 for none."""
    index = bisect_left(RATES, True, key=lambda rate: _choose({(rate, limit): num_rows}, num_rows, costs, gain) > 0)
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


def _choose(groups: Mapping[tuple[float, int], int], num_rows: int, costs: _Costs, gain: float) -> int:
    """The most guesses of a row with which a step of `num_rows`, some of which are in `groups`, gives most tokens a
    second, at least `gain` times as many as without; 0 if none does."""
    best, best_pace = 0, gain * num_rows / costs.plain_s
    longest, most = min(2 * costs.longest_tried, max(limit for _, limit in groups)), 1
    while most // 2 < longest:
        num_guesses, num_tokens = 0, float(num_rows)
        for (rate, limit), count in groups.items():
            length = _longest(rate, min(limit, most))
            num_guesses += count * length
            num_tokens += count * _expected(rate, length)
        pace = num_tokens / costs.guessing_s(num_guesses) if num_guesses else 0.0
        if pace > best_pace:
            best, best_pace = most, pace
        most *= 2
    return best


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


def _line(added: dict[int, _Median]) -> list[tuple[int, float]]:
    """What few steps say counts only where it is less than what is known lets expect: a number of guesses is not given
    up for one step that was held up."""
    known = sorted((count, one.value) for count, one in added.items() if len(one) >= KNOWN_SAMPLES)
    others = [(count, one.least) for count, one in added.items() if len(one) < KNOWN_SAMPLES]
    return sorted([*known, *((count, value) for count, value in others if value < _on_line(known, count))])


def _on_line(line: Sequence[tuple[int, float]], number: int) -> float:
    """See `_Costs.added_s`."""
    if not line:
        return 0.0
    index = bisect_left(line, (number, 0.0))
    if index == 0:
        high, at_high = line[0]
        return at_high * (1 + number / high) / 2
    low, at_low = line[index - 1]
    if index == len(line):
        return at_low * (1 + (number / low - 1) / 4)
    high, at_high = line[index]
    part = (number - low) / (high - low)
    return (1 - part) * at_low + part * at_high


def _about(number: int) -> int:
    """Up to 8 the number itself, above four share an octave."""
    shift = max(0, number.bit_length() - 3)
    return number >> shift << shift
