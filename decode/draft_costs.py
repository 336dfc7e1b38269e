"""What a step with guesses gains over one without, in batches of one size.

Without guesses means without speculation: plain steps, which neither looked for guesses nor waited.
"""

import math
from dataclasses import dataclass, field
from functools import partial

from .decoded_step import DecodedStep, Part
from .guess_costs import FIRST_PROBE_STEPS, KNOWN_SAMPLES, LAST_PROBE_STEPS, NUM_SAMPLES, GuessCosts
from .plain_steps import PlainSteps
from .running_median import RunningMedian

REFRESH_STEPS, SURE_REFRESH_STEPS = 64, 128
"""After which a plain step is measured again, which takes two steps without guesses: sooner where guesses promise less
than SURE_GAIN times as many tokens a second, since what plain steps take need not stay as it is."""
SURE_GAIN = 2.0
HELD_UP = 2.0
"""Times the usual: that a step took longer has to do with something else."""
FIRST_HELD_UP = 8.0
"""Times a plain step: the first one with guesses may have waited for a kernel to be compiled."""
PROBE_SHARE = 0.003
"""Of the time, that tries of what does not pay may take in the end."""


@dataclass(slots=True)
class DraftCosts:
    """Of batches of one size, in seconds."""

    size: int
    guesses: GuessCosts
    plain: PlainSteps
    now: int = 0
    """Steps of the worker."""
    refused_at: int = 0
    refused_steps: int = 0
    """When the engine last left guesses out of such batches; not asked for so long, which doubles each time."""
    usual_guessing: RunningMedian = field(default_factory=partial(RunningMedian, NUM_SAMPLES))
    usual_waiting: RunningMedian = field(default_factory=partial(RunningMedian, NUM_SAMPLES))
    least_rate: float = 1.0
    """As last reckoned, of a gain, a version of what guesses cost, and about what a plain step takes."""
    reckoned: tuple[float, int, int] | None = None
    _asked: tuple[int, int] | None = None
    """When `plain_s` was reckoned, and of which version."""
    _plain_s: float | None = None

    @property
    def is_known(self) -> bool:
        return self.plain_s is not None and self.plain.age(self.size, self.now) < self._stale_steps

    @property
    def bar(self) -> float | None:
        """The gain to be promised; None: nothing may be guessed."""
        return self.last_bar if self.is_known else None

    @property
    def last_bar(self) -> float | None:
        """As `bar`, if plain steps still take what they took when they were measured last."""
        return None if self._is_refused or self.plain_s is None else self.guesses.account.bar

    @property
    def _stale_steps(self) -> int:
        return SURE_REFRESH_STEPS if self.guesses.promise >= SURE_GAIN else REFRESH_STEPS

    @property
    def _is_refused(self) -> bool:
        return self.now - self.refused_at < self.refused_steps

    @property
    def plain_s(self) -> float | None:
        """None where it is not known."""
        asked = self.now, self.plain.version
        if self._asked != asked:
            self._asked, self._plain_s = asked, self.plain.value(self.size, self.now)
        return self._plain_s

    def slowdown(self, num_guesses: int, plain_s: float, *, waits: bool = False) -> float:
        """Times as long as a plain step, which takes `plain_s`, one with so many takes, with what it costs others.
        `waits`: without that, as it has waited already."""
        lost_s = self.guesses.added_s(num_guesses) if waits else self._lost_s(num_guesses)
        return 1 + lost_s / plain_s

    def rarest_probe_steps(self, num_guesses: int) -> int:
        """Between two tries of so many guesses."""
        wanted = math.ceil(self._lost_s(num_guesses) / (PROBE_SHARE * (self.plain_s or math.inf)))
        return max(FIRST_PROBE_STEPS, min(wanted, LAST_PROBE_STEPS))

    def _lost_s(self, num_guesses: int) -> float:
        return self.guesses.added_s(num_guesses) + self.guesses.overhead.value

    def take_in(self, step: DecodedStep, waits_for: GuessCosts | None) -> None:
        """`waits_for`: whose guesses, in the step before, it waited for."""
        guesses, plain_s = self.guesses, self.plain_s
        guesses.account.earn(step.num_steps)
        if step.num_drafts:
            longer = min(max(2, 2 * self.refused_steps), LAST_PROBE_STEPS)
            self.refused_at, self.refused_steps = self.now, 0 if step.num_tried else longer
        if step.part is Part.NONE and not step.num_drafts:
            self.plain.add(self.size, step.elapsed_s, self.now, self._stale_steps)
        elif plain_s is not None and (step.num_drafts or step.part is Part.WAITED):
            payer = guesses if step.num_drafts or waits_for is None else waits_for
            payer.account.settle(step, self._spent_s(step, plain_s), plain_s)
            if not step.num_tried:
                payer.wait(min(step.elapsed_s, HELD_UP * plain_s) - plain_s)
        if step.num_tried:
            guesses.guess(step.num_tried, self._added_s(step))
        else:
            guesses.rest(step.num_steps)

    def _added_s(self, step: DecodedStep) -> float | None:
        """By its guesses, where that is known."""
        plain_s = self.plain_s
        if plain_s is None or (self.guesses.is_new and step.elapsed_s > FIRST_HELD_UP * plain_s):
            return None
        return step.elapsed_s - plain_s

    def _spent_s(self, step: DecodedStep, plain_s: float) -> float:
        """But for what held it up, which has to do with something else."""
        usual = self.usual_guessing if step.num_drafts else self.usual_waiting
        usual.add(step.elapsed_s)
        most_s = HELD_UP * usual.value if len(usual) >= KNOWN_SAMPLES else FIRST_HELD_UP * plain_s
        return min(step.elapsed_s, most_s)
