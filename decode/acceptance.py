"""How often guesses are right, of one sequence or of a worker, by what came of the last ones."""

from typing import NamedTuple


class Memory(NamedTuple):
    decay: float
    """Weight of a step beside the next one."""
    prior_weight: float
    """Guesses that what is expected beforehand counts for."""


GENERAL, OWN = Memory(0.98, 2.0), Memory(0.95, 6.0)
"""Of a worker, and of a sequence, which is expected to do as others do: else a few wrong guesses end those that would
pay, and nothing is learnt from then on."""
FIRST_RATE = 0.7
"""Expected where nothing is known: guesses are tried."""
BOUNDS = 0.01, 0.99


class Acceptance:
    """A guess counts if all before it in its row were right. What comes next is taken to be as likely right as those
    were: so k guesses give Σ rate^i tokens, i = 1 … k."""

    def __init__(self, general: "Acceptance | None" = None, below: "Acceptance | None" = None) -> None:
        """What is expected beforehand is `general`, the rate of others, or that of guesses `below`, which are not as
        sure, if that is higher and any were judged."""
        self._general, self._below = general, below
        self._memory = GENERAL if general is None else OWN
        self._num_right = 0.0
        self._num_judged = 0.0
        self._as_below: float | None = None
        """The rate as those above take it: of when something was learnt here last, as all are asked in each step."""

    @property
    def rate(self) -> float:
        expected = FIRST_RATE if self._general is None else self._general.rate
        below = self._below
        while below is not None and not below._num_judged:
            below = below._below
        if below is not None:
            if below._as_below is None:
                below._as_below = below.rate
            expected = max(expected, below._as_below)
        weight = self._memory.prior_weight
        rate = (self._num_right + weight * expected) / (self._num_judged + weight)
        return min(max(rate, BOUNDS[0]), BOUNDS[1])

    def learn(self, num_drafts: int, num_right: int) -> None:
        """What came of one row."""
        decay = self._memory.decay
        self._num_right = decay * self._num_right + num_right
        self._num_judged = decay * self._num_judged + num_right + (num_right < num_drafts)
        if self._general is not None:
            self._general.learn(num_drafts, num_right)
        self._as_below = None
