"""Numbers of a sequence's tokens that grow at the end, as one array."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike


class Log:
    """A numpy array that numbers are appended to and taken off again."""

    def __init__(self, numbers: Sequence[float] | np.ndarray, dtype: DTypeLike) -> None:
        self._size = len(numbers)
        self._room = np.zeros(2 * self._size + 16, dtype)
        self._room[: self._size] = numbers

    def __len__(self) -> int:
        return self._size

    @property
    def array(self) -> np.ndarray:
        """A view, valid until the next `append`."""
        return self._room[: self._size]

    def append(self, number: float) -> None:
        if self._size == len(self._room):
            self._room = np.concatenate((self._room, np.zeros_like(self._room)))
        self._room[self._size] = number
        self._size += 1

    def shorten(self, count: int) -> np.ndarray:
        """Takes the last `count` off: a view of them, valid until the next `append`."""
        assert count <= self._size
        self._size -= count
        return self._room[self._size : self._size + count]
