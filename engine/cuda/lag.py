"""Which sequences have tokens in a head's backlog, as the host knows it; pure.

Until a slot is cleared the tokens that it adds follow one another: a sequence that is rewound leaves its slot first.
"""

import numpy as np

_NOTHING = np.empty(0, np.int32)


class Lag:
    def __init__(self, num_slots: int, length: int) -> None:
        """At most `length` tokens of each."""
        self._length = length
        self._num_steps = 0
        """Since nothing lagged: no sequence has more tokens here."""
        self._has_some = np.zeros(num_slots, bool)
        self._added: list[np.ndarray] = []
        """Slots of steps that `_has_some` has yet to be told of: next to nothing is done in most steps."""

    @property
    def is_full(self) -> bool:
        """Some sequence may have no room for one more."""
        return self._num_steps == self._length

    @property
    def slots(self) -> np.ndarray:
        """Of sequences that have some."""
        return np.flatnonzero(self._told())

    def of(self, slots: np.ndarray) -> np.ndarray:
        """Those of these slots whose sequences have some."""
        return slots[self._told()[slots]]

    def add(self, slots: np.ndarray) -> np.ndarray:
        """One more token of each of these, each slot once; the array is kept. The slots that must be caught up with
        before that: all that have some, where one may have no room."""
        due = _NOTHING
        if self.is_full:
            due = self.slots
            self.clear(due)
            self._num_steps = 0
        self._num_steps += 1
        self._added.append(slots)
        return due

    def clear(self, slots: np.ndarray) -> None:
        """These have been caught up with."""
        self._told()[slots] = False

    def _told(self) -> np.ndarray:
        if self._added:
            self._has_some[np.concatenate(self._added)] = True
            self._added.clear()
        return self._has_some
