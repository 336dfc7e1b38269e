"""What steps with guesses, and those that waited for them, took against plain ones for the same tokens.

Gains are paid in, losses paid from it, and a small part of the time is added. The less there is, the more guesses must
promise; where it is spent nothing is guessed. So in the long run no more than that part can be lost, whatever errs.
"""

from dataclasses import dataclass

from .decoded_step import DecodedStep

LEAST_GAIN = 1.02
"""Times as many tokens a second, or nothing is guessed."""
LOSS_SHARE = 0.003
"""Of the time, that guesses may lose in the long run."""
FIRST_CREDIT, MOST_CREDIT = 4, 8
"""Plain steps that may be lost at once: at first, and when much was gained. With less, a run of wrong guesses closes
accounts of guesses that pay."""
TRIES_CREDIT = 3
"""From so much on what does not pay may be tried: the rest is for guesses that promise something."""
BARS = (2, LEAST_GAIN), (0, 1.1), (-3, 1.25)
"""What guesses must promise, times as many tokens a second, from so many plain steps of credit on."""
FIRST_STEPS, FIRST_LOSS = 3, 2
"""With guesses: one of them costs no more than so many plain steps, for it may have been held up, which cannot be told
yet."""


@dataclass(slots=True)
class DraftAccount:
    credit: float = FIRST_CREDIT
    """Plain steps."""
    num_settled: int = 0

    @property
    def bar(self) -> float | None:
        """The gain to be promised; None: nothing may be guessed."""
        for credit, gain in BARS:
            if self.credit >= credit:
                return gain
        return None

    @property
    def may_try(self) -> bool:
        """What does not pay."""
        return self.credit >= TRIES_CREDIT

    def earn(self, num_steps: int) -> None:
        """Their share."""
        self.credit = min(MOST_CREDIT, self.credit + LOSS_SHARE * num_steps)

    def settle(self, step: DecodedStep, spent_s: float, plain_s: float) -> None:
        """After a step with guesses, or one that waited for them, for `spent_s`, beside which a plain one takes
        `plain_s`."""
        gain = 1 + step.num_right / step.num_rows - spent_s / plain_s
        self.num_settled += 1
        if self.num_settled <= FIRST_STEPS:
            gain = max(gain, -FIRST_LOSS)
        self.credit = min(MOST_CREDIT, self.credit + gain)
