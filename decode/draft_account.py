"""What steps with guesses, and those that waited for them, took against plain ones for the same tokens.

Gains are paid in, losses paid from it, and a small part of the time is added. The less there is, the more guesses must
promise; where it is spent nothing is guessed. So in the long run no more than that part can be lost, whatever errs.
"""

from dataclasses import dataclass, field
from functools import partial

from .decoded_step import DecodedStep
from .running_median import RunningMedian

LEAST_GAIN = 1.02
"""Times as many tokens a second, or nothing is guessed."""
LOSS_SHARE = 0.005
"""Of the time, that guesses may lose in the long run."""
FIRST_CREDIT, MOST_CREDIT = 2, 4
"""Plain steps that may be lost at once: at first, and when much was gained."""
BARS = (MOST_CREDIT / 2, LEAST_GAIN), (0, 1.15), (-MOST_CREDIT, 1.5)
"""What guesses must promise, times as many tokens a second, where there is more credit than so many plain steps."""
NUM_SAMPLES = 5
HELD_UP = 2.0
"""Times the usual: that a step took longer has to do with something else."""


@dataclass(slots=True)
class DraftAccount:
    credit: float = FIRST_CREDIT
    """Plain steps."""
    usual: RunningMedian = field(default_factory=partial(RunningMedian, NUM_SAMPLES))
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
