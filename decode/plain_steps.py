"""What steps without guesses take, by the size of the batch.

Sizes that are `about` the same share their samples. One of which too little is known lies on a line between those
around it: a batch whose sequences end passes many sizes, and stays in none of them for long.
"""

from dataclasses import dataclass, field
from functools import partial

from .running_median import RunningMedian

NUM_SAMPLES = 9
"""Everything is held against plain steps."""
KNOWN_SAMPLES = 3
"""From so many on a size is known,"""
OLD_STEPS = 512
"""and until so many steps after the last one."""
CHANGED = 1.25
"""Times as long or as short: then what was measured before counts no more."""


@dataclass(slots=True)
class _Size:
    samples: RunningMedian = field(default_factory=partial(RunningMedian, NUM_SAMPLES))
    at: int = 0
    """Step of the worker, of the last one."""

    def is_known(self, now: int) -> bool:
        return len(self.samples) >= KNOWN_SAMPLES and now - self.at < OLD_STEPS


class PlainSteps:
    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._measured_at: dict[int, int] = {}
        """By octaves of sizes."""
        self.version = 0
        """Values are others when this changes, or time passes."""

    def add(self, size: int, elapsed_s: float, now: int, stale_steps: int) -> None:
        """`stale_steps` after the last one what is known may be another time's: contexts grow, others come."""
        one = self._sizes.setdefault(size, _Size())
        is_stale = len(one.samples) and now - one.at >= stale_steps
        if is_stale and not 1 / CHANGED < elapsed_s / one.samples.value < CHANGED:
            one.samples.clear()
        one.samples.add(elapsed_s)
        self.version += 1
        one.at = self._measured_at[octave(size)] = now

    def age(self, size: int, now: int) -> int:
        """Steps since one of about this size was measured; all, if none ever was."""
        return now - self._measured_at.get(octave(size), 0)

    def value(self, size: int, now: int) -> float | None:
        """Seconds; None where too little is known."""
        own = self._sizes.get(size)
        if own is not None and own.is_known(now):
            return own.samples.value
        known = [number for number, one in self._sizes.items() if one.is_known(now)]
        below = max((number for number in known if number < size), default=0)
        above = min((number for number in known if number > size), default=0)
        if octave(size) not in [octave(number) for number in (below, above) if number]:
            return None
        if not below or not above:
            return self._sizes[below or above].samples.value
        part = (size - below) / (above - below)
        return (1 - part) * self._sizes[below].samples.value + part * self._sizes[above].samples.value


def octave(size: int) -> int:
    return size.bit_length()


def of_an_octave(size: int) -> range:
    """All sizes of the same."""
    end = 1 << octave(size)
    return range(end >> 1, end)
