"""The median of the last samples: one that is far out says nothing."""

from collections import deque
from statistics import median


class RunningMedian:
    __slots__ = ("_samples", "_value")

    def __init__(self, num_samples: int) -> None:
        self._samples: deque[float] = deque(maxlen=num_samples)
        self._value: float | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: float) -> None:
        self._samples.append(sample)
        self._value = None

    def clear(self) -> None:
        self._samples.clear()
        self._value = None

    @property
    def least(self) -> float:
        return min(self._samples)

    @property
    def value(self) -> float:
        if self._value is None:
            self._value = median(self._samples)
        return self._value
