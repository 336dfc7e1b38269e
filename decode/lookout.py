"""When sequences are looked at for guesses, and which of them; pure.

A look must read what its sequence has said since the last one, so on a GPU with a small model it is no small part of a
step. While guesses are made everyone who had one of late is looked at in every step, and the others now and then. Else
a few scouts are, soon after a sequence has begun or guesses were made, then ever more rarely; when one of them has a
guess, all are.
"""

from .plain_steps import of_an_octave
from .speculator import Reach

NUM_SCOUTS = 4
"""About: of more sequences only so many go on being looked at where nothing was found."""
SCOUTED_STEPS = 4096
"""Then others are scouts."""
FIRST_SEARCH_STEPS, LAST_SEARCH_STEPS = 2, 64
"""Between two looks at first: twice as many each time that nothing came of one, up to this."""
AHEAD_DIVISOR = 4
"""So many times as often looks may take place while a step is in flight, where most of them cost nothing."""
PAYING_DIVISOR = 8
"""And so many times as often where guesses are made: one more row with guesses is worth many looks."""
REST_STEPS = 64
"""At least, where no guess can pay in batches of this size: to find that out again takes a part of short steps."""
FIRST_RECALL_STEPS, LAST_RECALL_STEPS = 32, 512
"""Before all are looked at again for what scouts have found, where too few had a guess."""


class Lookout:
    def __init__(self) -> None:
        self._num_steps = 0
        self._next_look = self._earliest_look = self._next_recall = 0
        """Steps."""
        self._search_steps = FIRST_SEARCH_STEPS
        self._recall_steps = FIRST_RECALL_STEPS
        self._is_recalled = False
        self._rests_with = range(0)
        """Numbers of rows; empty: it does not rest."""
        self._goes_on = False
        """Guesses were made in the step before, or waited for."""
        self._lingers = False
        """Someone is looked at in each step, as guesses were right of late."""

    def begin_step(self, num_rows: int) -> Reach | None:
        """Of the looks in this step, of about so many rows, if there are any."""
        self._num_steps += 1
        is_due = self._num_steps >= self._next_look or not self._may_rest(num_rows)
        if self._is_recalled or (self._goes_on and is_due):
            return Reach.ALL
        if is_due:
            return Reach.SCOUTS
        return Reach.FOUND if self._goes_on or self._lingers else None

    def num_quiet(self, num_rows: int) -> int:
        """Steps of about so many rows before the next one with looks, if no sequence begins meanwhile."""
        if self._is_recalled or self._goes_on or self._lingers or not self._may_rest(num_rows):
            return 0
        return max(0, self._next_look - self._num_steps - 1)

    def pass_step(self) -> None:
        """One of these."""
        self._num_steps += 1

    def scouts(self, num_rows: int) -> tuple[int, int]:
        """One in so many sequences, and which of them."""
        num_groups = max(1, num_rows // NUM_SCOUTS)
        return num_groups, self._num_steps // SCOUTED_STEPS % num_groups

    def welcome(self) -> None:
        """A sequence begins."""
        self._search_steps = FIRST_SEARCH_STEPS
        self._next_look = min(self._next_look, max(self._earliest_look, self._num_steps + FIRST_SEARCH_STEPS))

    def rest(self, num_rows: int, search_steps: int) -> None:
        """No guess can pay now, with about so many rows, whoever comes. `search_steps`: as of `looked`."""
        self._next_look = self._earliest_look = self._num_steps + max(REST_STEPS, search_steps)
        self._rests_with = of_an_octave(num_rows)
        self._goes_on = self._is_recalled = self._lingers = False

    def looked(
        self,
        reach: Reach,
        search_steps: int,
        *,
        is_ahead: bool,
        num_looked: int,
        found: bool,
        pays: bool,
        promises: bool,
    ) -> None:
        """What came of it: how many were looked at, whether anyone has a guess, whether guesses are made, and whether
        they would be, were all like those that were looked at. `search_steps`: from one look to the next, so that they
        take little of the time. `is_ahead`: a step was in flight meanwhile."""
        self._rests_with = range(0)
        self._lingers = pays or (self._lingers and (num_looked > 0 or reach is not Reach.FOUND))
        if pays:
            self._search_steps = FIRST_SEARCH_STEPS
        if reach is not Reach.FOUND or (self._goes_on and not pays):
            divisor = PAYING_DIVISOR if pays else AHEAD_DIVISOR if is_ahead else 1
            self._earliest_look = self._num_steps + search_steps // divisor
            self._next_look = max(self._earliest_look, self._num_steps + min(self._search_steps, search_steps))
            self._search_steps = min(2 * self._search_steps, LAST_SEARCH_STEPS)
        if pays:
            self._recall_steps = FIRST_RECALL_STEPS
        elif reach is Reach.ALL:
            self._next_recall = self._num_steps + self._recall_steps
            self._recall_steps = min(2 * self._recall_steps, LAST_RECALL_STEPS)
        may_recall = promises or self._num_steps >= self._next_recall
        self._is_recalled = reach is Reach.SCOUTS and found and may_recall
        self._goes_on = pays

    def _may_rest(self, num_rows: int) -> bool:
        """Until the next look."""
        return not self._rests_with or num_rows in self._rests_with
