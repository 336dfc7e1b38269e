"""What steps take without guesses, and what guesses add to them, in batches of one size.

Without guesses means without speculation: plain steps, which neither looked for guesses nor waited. What so and so many
guesses add is on a CPU about as much for each, on a GPU mostly something for any at all, as nothing is then planned
ahead. There they also cost the steps around their own: that is measured, too, and counts for each step with guesses,
the less the longer they go on.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from .decoded_step import DecodedStep, Part
from .draft_account import LEAST_GAIN, DraftAccount
from .running_median import RunningMedian

NUM_SAMPLES = 5
"""Of what so many guesses added."""
KNOWN_SAMPLES = 3
"""From so many on that is known."""
NUM_PLAIN_SAMPLES = 9
"""Everything is held against plain steps."""
FIRST_PLAIN_STEPS = 3
"""Before any guesses are made."""
REFRESH_STEPS, SURE_REFRESH_STEPS = 32, 128
"""After which a plain step is measured again, which takes two steps without guesses: sooner where guesses promise less
than SURE_GAIN times as many tokens a second, since what plain steps take need not stay as it is."""
SURE_GAIN = 2.0
CHANGED = 1.25
"""Times as long or as short: then what was measured before counts no more."""
HELD_UP = 2.0
"""Times the usual: that a step took longer has to do with something else."""
MOST_GUESSES = 1024
"""Of a step, more or less."""
FIRST_PROBE_STEPS, LAST_PROBE_STEPS = 48, 1024
"""Steps between two tries of guesses that do not pay: at first, and at most."""
PROBE_GUESSES = 2
"""Of one row."""
PROBE_SHARE = 0.003
"""Of the time, that such tries may take in the end."""
RECKON_STEPS, LEARNT_STEPS = 64, 8
"""Without guesses and with, after which it is reckoned anew what pays."""
OVERHEAD_DECAY = 0.8
"""Of what waiting cost, from one step with guesses to the next."""


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
        self.spent_s *= OVERHEAD_DECAY


@dataclass(slots=True)
class DraftCosts:
    """Of batches of one size, in seconds."""

    account: DraftAccount
    """One with sizes that are alike."""
    plain: RunningMedian = field(default_factory=partial(RunningMedian, NUM_PLAIN_SAMPLES))
    """Plain steps."""
    now: int = 0
    """Steps of the worker."""
    plain_at: int = 0
    """When the last of those was, then."""
    longest_tried: int = PROBE_GUESSES // 2
    """Guesses of a row: no more than twice as many are tried next."""
    added: dict[int, RunningMedian] = field(default_factory=dict)
    """What guesses added to their own step, by about how many there were."""
    line: list[tuple[int, float]] = field(default_factory=list)
    """Of those, numbers and what they added, where that is known, or less than the others let expect."""
    usual_guessing: RunningMedian = field(default_factory=partial(RunningMedian, NUM_SAMPLES))
    usual_waiting: RunningMedian = field(default_factory=partial(RunningMedian, NUM_SAMPLES))
    overhead: Overhead = field(default_factory=Overhead)
    num_learnt: int = 0
    """Steps with guesses."""
    quiet_steps: int = 0
    """Since the last of those."""
    probe_steps: int = FIRST_PROBE_STEPS
    promise: float = 1.0
    """Of the last guesses: times as many tokens a second."""
    least_rate: float | None = None
    """As last reckoned, of a gain; None if it is to be reckoned anew."""
    least_gain: float = LEAST_GAIN

    @property
    def is_known(self) -> bool:
        return len(self.plain) >= FIRST_PLAIN_STEPS and not self._is_stale

    @property
    def _is_stale(self) -> bool:
        steps = SURE_REFRESH_STEPS if self.promise >= SURE_GAIN else REFRESH_STEPS
        return self.now - self.plain_at >= steps

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
        if step.num_drafts or step.part is Part.WAITED:
            if len(self.plain):
                self.account.settle(step, self._spent_s(step), self.plain_s)
        elif step.part is Part.NONE:
            self._learn_plain(step.elapsed_s)
        if step.num_tried:
            self._learn(step.num_tried, step.elapsed_s)
        else:
            self._rest(step)

    def _learn_plain(self, elapsed_s: float) -> None:
        if len(self.plain) and self._is_stale and not 1 / CHANGED < elapsed_s / self.plain_s < CHANGED:
            self.plain.clear()  # contexts have grown, or others have come: what was known is another time's
        self.plain.add(elapsed_s)
        self.plain_at = self.now

    def _spent_s(self, step: DecodedStep) -> float:
        """But for what held it up, which has to do with something else."""
        usual = self.usual_guessing if step.num_drafts else self.usual_waiting
        usual.add(step.elapsed_s)
        return min(step.elapsed_s, HELD_UP * usual.value)

    def give_up(self, num_rows: int) -> None:
        """The engine tries no guesses in such batches."""
        if not len(self.plain):  # fewer rows than were counted on, and such a batch is not measured yet
            return
        self.added = {count: RunningMedian(NUM_SAMPLES) for count in (1, MOST_GUESSES)}
        for samples in self.added.values():
            for _ in range(NUM_SAMPLES):
                samples.add(MOST_GUESSES * num_rows * self.plain_s)
        self.line = _line(self.added)
        self.least_rate = None
        self.quiet_steps = 0

    def _learn(self, num_guesses: int, elapsed_s: float) -> None:
        if len(self.plain):
            self.num_learnt += 1
            if self.num_learnt % LEARNT_STEPS == 0:
                self.least_rate = None
            self.added.setdefault(about(num_guesses), RunningMedian(NUM_SAMPLES)).add(
                max(0.0, elapsed_s - self.plain_s)
            )
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


def _line(added: dict[int, RunningMedian]) -> list[tuple[int, float]]:
    """What few steps say counts only where nothing more is known, and for less, or where it is less than that lets
    expect: a number of guesses is not given up for one step that was held up."""
    known = sorted((count, one.value) for count, one in added.items() if len(one) >= KNOWN_SAMPLES)
    others = [(count, one) for count, one in added.items() if len(one) < KNOWN_SAMPLES]
    if not known:
        return sorted((count, one.least * len(one) / KNOWN_SAMPLES) for count, one in others)
    lower = [(count, one.least) for count, one in others if one.least < _on_line(known, count)]
    return sorted([*known, *lower])


def _on_line(line: Sequence[tuple[int, float]], number: int) -> float:
    """See `DraftCosts.added_s`."""
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


def about(number: int) -> int:
    """Up to 8 the number itself, above four share an octave."""
    shift = max(0, number.bit_length() - 3)
    return number >> shift << shift
