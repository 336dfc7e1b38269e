"""How many tokens of each sequence are in a head's backlog, as the host knows it; pure."""

import numpy as np


class Lag:
    def __init__(self, num_slots: int, length: int) -> None:
        """At most `length` tokens of each."""
        self._length = length
        self._counts = np.zeros(num_slots, np.int64)
        self._ends = np.zeros(num_slots, np.int64)
        """The position after the last of them."""

    def __bool__(self) -> bool:
        return bool(self._counts.any())

    @property
    def slots(self) -> np.ndarray:
        """Of sequences that have some."""
        return np.flatnonzero(self._counts)

    def of(self, slots: np.ndarray) -> np.ndarray:
        """Those of these slots whose sequences have some."""
        return slots[self._counts[slots] > 0]

    def add(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """One more token of each of these, each slot once. The slots that must be caught up with before that: all that
        have some, where one has no room or does not go on where it was, as it was rewound."""
        counts = self._counts[slots]
        is_due = (counts == self._length) | ((counts > 0) & (self._ends[slots] != positions))
        due = self.slots if is_due.any() else slots[:0]
        self.clear(due)
        self._counts[slots] += 1
        self._ends[slots] = positions + 1
        return due

    def clear(self, slots: np.ndarray) -> None:
        """These have been caught up with."""
        self._counts[slots] = 0
