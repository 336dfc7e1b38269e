"""What guesses add to steps, in batches of about the same size.

On a CPU that is about as much for each, on a GPU mostly something for any at all, as nothing is then planned ahead.
There they also cost the steps around their own: that is measured, too, and counts for each step with guesses, the less
the longer they go on.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from .draft_account import DraftAccount
from .running_median import RunningMedian

NUM_SAMPLES = 5
"""Of what so many guesses added."""
KNOWN_SAMPLES = 3
"""From so many on that is known."""
FIRST_PROBE_STEPS, LAST_PROBE_STEPS = 48, 1024
"""Steps between two tries of guesses that do not pay: at first, and at most."""
PROBE_GUESSES = 2
"""Of one row."""
RECKON_STEPS, LEARNT_STEPS = 64, 8
"""Without guesses and with, after which it is reckoned anew what pays."""
OLD_STEPS = 512
"""With guesses: what numbers added that none of them had is measured anew."""
OVERHEAD_DECAY = 0.8
"""Of what waiting cost, from one step with guesses to the next."""
LEAST_S = 1e-5
"""That counts."""


@dataclass(slots=True)
class Overhead:
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
        spent_s = OVERHEAD_DECAY * self.spent_s
        self.spent_s = spent_s if spent_s >= LEAST_S else 0.0


@dataclass(slots=True)
class Slopes:
    """What one more guess adds, in seconds, by octaves of batch sizes: known of those that had several numbers."""

    _known: dict[int, float] = field(default_factory=dict)

    def learn(self, octave: int, known: Sequence[tuple[int, float]]) -> None:
        """Of numbers of guesses, what they added."""
        (low, at_low), (high, at_high) = min(known), max(known)
        self._known[octave] = max(0.0, (at_high - at_low) / (high - low))

    def forget(self, octave: int) -> None:
        self._known.pop(octave, None)

    def value(self, octave: int) -> float | None:
        """That of the next smaller batches that is known is taken to be for one guess of each row: so it is on a GPU,
        and where it is more, as on a CPU, a step or two with guesses show it."""
        if not self._known:
            return None
        nearest = max((one for one in self._known if one <= octave), default=None)
        if nearest is None:
            return self._known[min(self._known)]
        return self._known[nearest] * 2.0 ** (nearest - octave)


@dataclass(slots=True)
class GuessCosts:
    """Of batches of about the same size, in seconds: what guesses add is learnt of all of them together."""

    octave: int
    slopes: Slopes
    """Of all batches."""
    below: "GuessCosts | None" = None
    """Of smaller batches: what is expected where nothing is known."""
    account: DraftAccount = field(default_factory=DraftAccount)
    longest_tried: int = PROBE_GUESSES // 2
    """Guesses of a row: no more than twice as many are tried next."""
    is_new: bool = True
    """No step had any."""
    overhead: Overhead = field(default_factory=Overhead)
    quiet_steps: int = 0
    """Since the last step with guesses."""
    probe_steps: int = FIRST_PROBE_STEPS
    promise: float = 1.0
    """Of the last guesses: times as many tokens a second."""
    version: int = 0
    """What pays is to be reckoned anew when this changes."""
    _added: dict[int, RunningMedian] = field(default_factory=dict)
    """To their own step, by about how many there were."""
    _line: list[tuple[int, float]] = field(default_factory=list)
    """Of those, numbers and what they added, where that is known, or less than the others let expect."""
    _num_learnt: int = 0
    """Steps with guesses."""
    _learnt_at: dict[int, int] = field(default_factory=dict)
    """By those numbers, when that was last."""

    @property
    def is_curious(self) -> bool:
        """It is time to try what does not pay."""
        return self.quiet_steps >= self.probe_steps and self.account.may_try

    def added_s(self, num_guesses: int) -> float:
        """Between two numbers that are known on the line between them; for fewer or more than any as the slope says.
        Where none is known one guess fewer counts for half of what they on average took, one more of each row for a
        quarter: so they are tried where that pays. Nothing where no number is known."""
        return self._on(self._expected, num_guesses)

    @property
    def _expected(self) -> list[tuple[int, float]]:
        if self._line or self.below is None:
            return self._line
        return self.below._expected

    def guess(self, num_guesses: int, added_s: float | None) -> None:
        """A step had so many, and took so much longer if that is known."""
        self.overhead.guess()
        self.is_new, self.quiet_steps = False, 0
        if added_s is None:
            return
        self._num_learnt += 1
        if self._num_learnt % LEARNT_STEPS == 0 or not self._line:
            self.version += 1
            self._forget_old()
        number = about(num_guesses)
        self._added.setdefault(number, RunningMedian(NUM_SAMPLES)).add(max(0.0, added_s))
        self._learnt_at[number] = self._num_learnt
        known = sorted((count, one.value) for count, one in self._added.items() if len(one) >= KNOWN_SAMPLES)
        if len(known) > 1:
            self.slopes.learn(self.octave, known)
        elif self._num_learnt > OLD_STEPS:
            self.slopes.forget(self.octave)
        self._line = self._with_few(known)

    def wait(self, longer_s: float) -> None:
        """A step that waited, and had none."""
        self.overhead.spent_s += max(0.0, longer_s)
        self.version += 1

    def rest(self, num_steps: int) -> None:
        """Without guesses."""
        before, self.quiet_steps = self.quiet_steps, self.quiet_steps + num_steps
        if self.overhead.spent_s and before // RECKON_STEPS != self.quiet_steps // RECKON_STEPS:
            self.overhead.fade()
            self.version += 1

    def _forget_old(self) -> None:
        """A number that was given up as too dear is never measured otherwise."""
        for number in [one for one, at in self._learnt_at.items() if self._num_learnt - at > OLD_STEPS]:
            del self._added[number], self._learnt_at[number]

    def _with_few(self, known: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
        """Those, and numbers of which little is known: none takes longer than a larger one, as a number of guesses is
        not given up for one step that was held up."""
        line, least_above = list[tuple[int, float]](), math.inf
        for count, one in sorted(self._added.items(), reverse=True):
            is_known = len(one) >= KNOWN_SAMPLES
            value = one.value if is_known else min(self._of_few(count, one, known), least_above)
            least_above = min(least_above, value)
            line.append((count, value))
        return line[::-1]

    def _of_few(self, count: int, one: RunningMedian, known: Sequence[tuple[int, float]]) -> float:
        """What few steps say counts for less than what the others let expect, if it is more than that."""
        weight, least = len(one), one.least
        if not known:
            return weight * least / KNOWN_SAMPLES
        return min(least, (self._on(known, count) + weight * least) / (1 + weight))

    def _on(self, line: Sequence[tuple[int, float]], number: int) -> float:
        """See `added_s`."""
        if not line:
            return 0.0
        index = bisect_left(line, (number, 0.0))
        if 0 < index < len(line):
            (low, at_low), (high, at_high) = line[index - 1], line[index]
            part = (number - low) / (high - low)
            return (1 - part) * at_low + part * at_high
        slope = self.slopes.value(self.octave)
        if index == 0:
            high, at_high = line[0]
            return at_high * (1 + number / high) / 2 if slope is None else max(0.0, at_high - slope * (high - number))
        low, at_low = line[-1]
        slope = at_low / low / 4 / 2 ** (self.octave - 1) if slope is None else slope
        return at_low + (number - low) * slope


def about(number: int) -> int:
    """Up to 8 the number itself, above four share an octave."""
    return alike(number).start


def alike(number: int) -> range:
    """The numbers that are `about` the same."""
    shift = max(0, number.bit_length() - 3)
    first = number >> shift << shift
    return range(first, first + (1 << shift))
