"""Which sequences have tokens in a head's backlog, as the host knows it; pure."""

import numpy as np


class Lag:
    def __init__(self, num_slots: int, length: int) -> None:
        """At most `length` tokens of each."""
        self._length = length
        self._num_steps = 0
        """Since nothing lagged: no sequence has more tokens here."""
        self._ends = np.zeros(num_slots, np.int32)
        """The position after the last of them; 0 where there are none."""

    @property
    def slots(self) -> np.ndarray:
        """Of sequences that have some."""
        return np.flatnonzero(self._ends)

    def of(self, slots: np.ndarray) -> np.ndarray:
        """Those of these slots whose sequences have some."""
        return slots[self._ends[slots] > 0]

    def add(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """One more token of each of these, each slot once. The slots that must be caught up with before that: all that
        have some, where one may have no room or does not go on where it was, as it was rewound."""
        due = slots[:0]
        if self._num_steps == self._length or not self._go_on(slots, positions):
            due = self.slots
            self.clear(due)
            self._num_steps = 0
        self._num_steps += 1
        self._ends[slots] = positions + 1
        return due

    def clear(self, slots: np.ndarray) -> None:
        """These have been caught up with."""
        self._ends[slots] = 0

    def _go_on(self, slots: np.ndarray, positions: np.ndarray) -> bool:
        ends = self._ends[slots]
        differs = ends != positions
        return not differs.any() or not (differs & (ends > 0)).any()
