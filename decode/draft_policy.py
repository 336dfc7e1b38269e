"""How many tokens to guess at once: as many as come sooner with guesses than without.

A row with k guesses, each right with probability r if those before it are, gives 1 + r + … + r^k tokens. What a step
takes without guesses is measured for each size of the batch, and what so and so many guesses add to it: on a CPU about
as much for each, on a GPU mostly something for any at all, as nothing is then planned ahead. That number of guesses a
row is chosen which gives most tokens a second. Steps of each kind are tried now and then, the rarer the less they paid.

Without guesses means without speculation: plain steps, which neither looked for guesses nor waited. On a GPU guesses
also cost the steps around their own, which are then not planned ahead: that is measured, too, and counts for each step
with guesses, the less the longer they go on. Last, steps with guesses and those that waited for them are held against
plain ones together: where looks, masks and waiting have cost more than guesses gave, nothing is guessed for a while,
however promising.
"""

import math
from bisect import bisect_left
from collections import Counter, deque
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
FIRST_PROBE_STEPS, LAST_PROBE_STEPS = 48, 1024
"""Steps between two tries of guesses that do not pay: at first, and at most."""
PROBE_SHARE = 0.005
"""Of the time, that such tries may take in the end."""
FIRST_PAUSE_STEPS, LAST_PAUSE_STEPS = 16, 128
"""Without guesses, where they have not paid."""
TRIAL_STEPS = 16
"""With guesses or after them: so many are judged together."""
MOST_LOST = 1.5
"""Plain steps' time: when that is lost, no more are awaited."""
BALANCE_STEPS = 64
"""Those of them that count, about."""
HELD_UP = 2.0
"""Times the usual: that a step took longer has to do with something else."""
RECKON_STEPS = 64
"""Without guesses, after which it is reckoned anew what pays."""
OVERHEAD_DECAY = 0.8
"""Of what waiting cost, from one step with guesses to the next."""
LOOK_S = 10e-6
"""A look for a guess of one sequence, about, with what it must read first."""
LOOK_SHARE = 0.01
"""Of a step, that looks may take: it is short where a small model runs on a GPU."""
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
class _Balance:
    """Of steps with guesses and after them, those long ago counting for less."""

    num_steps: int = 0
    spent_s: float = 0.0
    worth_s: float = 0.0
    """What plain steps would have taken for the same tokens."""
    usual: _Median = field(default_factory=_Median)

    def add(self, spent_s: float, worth_s: float) -> None:
        if self.num_steps == BALANCE_STEPS:
            self.num_steps //= 2
            self.spent_s /= 2
            self.worth_s /= 2
        self.usual.add(spent_s)
        self.num_steps += 1
        self.spent_s += min(spent_s, HELD_UP * self.usual.value)
        self.worth_s += worth_s

    def has_paid(self, plain_s: float) -> bool | None:
        """None: it is too early to say."""
        if self.spent_s - self.worth_s > MOST_LOST * plain_s:
            return False
        return self.worth_s >= LEAST_GAIN * self.spent_s if self.num_steps >= TRIAL_STEPS else None


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
    added: dict[int, _Median] = field(default_factory=dict)
    """What guesses added to their own step, by about how many there were."""
    line: list[tuple[int, float]] = field(default_factory=list)
    """Of those, numbers and what they added, where that is known, or less than the others let expect."""
    overhead: _Overhead = field(default_factory=_Overhead)
    num_learnt: int = 0
    """Steps with guesses."""
    quiet_steps: int = 0
    """Since the last of those."""
    probe_steps: int = FIRST_PROBE_STEPS
    least_rate: float | None = None
    """As last reckoned; None if it is to be reckoned anew."""
    balance: _Balance = field(default_factory=_Balance)
    is_paused: bool = False
    """Guesses have not paid: there are none for `pause_steps`."""
    pause_steps: int = FIRST_PAUSE_STEPS

    @property
    def is_known(self) -> bool:
        return len(self.plain) >= FIRST_PLAIN_STEPS and self.plain_age < REFRESH_STEPS

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
        if step.part is Part.NONE and not step.num_drafts:
            self.plain.add(step.elapsed_s)
            self.plain_age = 0
        else:
            self.plain_age += 1
        if len(self.plain) and (step.num_drafts or step.part is Part.WAITED):
            self._weigh(step)
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
        self.quiet_steps += 1
        if self.quiet_steps % RECKON_STEPS == 0:
            self.overhead.fade()
            self.least_rate = None
        if self.is_paused and self.quiet_steps >= self.pause_steps:
            self.pause_steps = min(2 * self.pause_steps, LAST_PAUSE_STEPS)
            self.is_paused, self.balance = False, _Balance()

    def _weigh(self, step: DecodedStep) -> None:
        self.balance.add(step.elapsed_s, self.plain_s * (1 + step.num_right / step.num_rows))
        has_paid = self.balance.has_paid(self.plain_s)
        if has_paid:
            self.pause_steps = FIRST_PAUSE_STEPS
        elif has_paid is False and not self.is_paused:
            self.is_paused, self.quiet_steps = True, 0


class DraftPolicy:
    def __init__(self) -> None:
        self._costs: dict[int, _Costs] = {}

    def least_rate(self, num_rows: int, limit: int) -> tuple[float, bool]:
        """(how often guesses must be right to pay, were there `limit` for each of so many rows, 1 for never; whether it
        is time to try what does not)."""
        costs = self._of(num_rows)
        if not costs.is_known or costs.is_paused:
            return 1.0, False
        if costs.quiet_steps >= costs.probe_steps:
            return LEAST_RATE, True
        if costs.least_rate is None:
            costs.least_rate = _least_rate(limit, num_rows, costs)
        return costs.least_rate, False

    def search_steps(self, num_rows: int, num_looks: int) -> int:
        """From a step of so many rows with so many looks for guesses to the next, that looks take little of a step."""
        costs = self._of(num_rows)
        return math.ceil(LOOK_S * num_looks / (LOOK_SHARE * costs.plain_s)) if costs.is_known else 1

    def pays(self, rates: Sequence[float], limits: Sequence[int], num_rows: int) -> bool:
        """Whether `lengths` would be more than 0."""
        costs = self._of(num_rows)
        if not any(limits) or not costs.is_known or costs.is_paused:
            return False
        return costs.quiet_steps >= costs.probe_steps or _choose(_groups(rates, limits), num_rows, costs) > 0

    def lengths(self, rates: Sequence[float], limits: Sequence[int], num_rows: int) -> list[int]:
        """Guesses of some rows of a batch of `num_rows`, given how often they are right, and how many each may have."""
        costs = self._of(num_rows)
        if not any(limits) or not costs.is_known or costs.is_paused:
            return [0] * len(rates)
        most = _choose(_groups(rates, limits), num_rows, costs)
        if most:
            costs.probe_steps = FIRST_PROBE_STEPS
        elif costs.quiet_steps >= costs.probe_steps:
            most = PROBE_GUESSES
            num_guesses = sum(min(limit, most) for limit in limits)
            costs.probe_steps = min(2 * costs.probe_steps, costs.rarest_probe_steps(num_guesses))
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
            costs = self._costs[number] = _Costs()
        return costs


def _least_rate(limit: int, num_rows: int, costs: _Costs) -> float:
    """The lowest of RATES at which a batch whose rows may all have `limit` guesses is to have some; 1 for none."""
    index = bisect_left(RATES, True, key=lambda rate: _choose({(rate, limit): num_rows}, num_rows, costs) > 0)
    return RATES[index] if index < len(RATES) else 1.0


def _groups(rates: Sequence[float], limits: Sequence[int]) -> Counter[tuple[float, int]]:
    """How many rows have about this rate, and this limit."""
    return Counter(zip(map(_about_rate, rates), limits, strict=True))


def _choose(groups: Mapping[tuple[float, int], int], num_rows: int, costs: _Costs) -> int:
    """The most guesses of a row with which a step of `num_rows` gives most tokens a second, some of which are in
    `groups`."""
    best, best_pace = 0, LEAST_GAIN * num_rows / costs.plain_s
    longest, most = max(limit for _, limit in groups), 1
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
