"""Which sequences have tokens in a head's backlog, as the host knows it; pure."""

import numpy as np

_NOTHING = np.empty(0, np.int32)
_ONE = np.ones(1, np.int32)


class Lag:
    def __init__(self, num_slots: int, length: int) -> None:
        """At most `length` tokens of each."""
        self._length = length
        self._num_steps = 0
        """Since nothing lagged: no sequence has more tokens here."""
        self._last_slots = self._next_positions = _NOTHING
        """Of the last step, and where each goes on: `_ends` has yet to be told."""
        self._ends = np.zeros(num_slots, np.int32)
        """The position after the last of them; 0 where there are none."""

    @property
    def slots(self) -> np.ndarray:
        """Of sequences that have some."""
        return np.flatnonzero(self._told_ends())

    def of(self, slots: np.ndarray) -> np.ndarray:
        """Those of these slots whose sequences have some."""
        return slots[self._told_ends()[slots] > 0]

    def add(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """One more token of each of these, each slot once. The slots that must be caught up with before that: all that
        have some, where one may have no room or does not go on where it was, as it was rewound."""
        has_room = self._num_steps < self._length
        if has_room and self._is_next(slots, positions):
            self._num_steps += 1
            self._next_positions += _ONE
            return _NOTHING
        due = _NOTHING
        if not (has_room and self._go_on(slots, positions)):
            due = self.slots
            self.clear(due)
            self._num_steps = 0
        self._num_steps += 1
        self._last_slots, self._next_positions = slots.copy(), positions + _ONE
        return due

    def clear(self, slots: np.ndarray) -> None:
        """These have been caught up with."""
        self._told_ends()[slots] = 0

    def _is_next(self, slots: np.ndarray, positions: np.ndarray) -> bool:
        """Whether the last step's sequences go on, as in most steps: bytes are compared, in a third of the time that
        `==` and `all` take."""
        is_same = slots.tobytes() == self._last_slots.tobytes()
        return is_same and positions.tobytes() == self._next_positions.tobytes()

    def _go_on(self, slots: np.ndarray, positions: np.ndarray) -> bool:
        ends = self._told_ends()[slots]
        differs = ends != positions
        return not differs.any() or not (differs & (ends > 0)).any()

    def _told_ends(self) -> np.ndarray:
        """`_ends`, which now know all; the next step is compared with them again."""
        self._ends[self._last_slots] = self._next_positions
        self._last_slots = self._next_positions = _NOTHING
        return self._ends
