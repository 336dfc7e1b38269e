"""A token bucket: so many at once, and then so many a second."""


class TokenBucket:
    """Full at first. `now` is in seconds, of any clock that does not go back."""

    def __init__(self, capacity: int, per_s: float, now: float):
        self._capacity = capacity
        self._per_s = per_s
        self._level = float(capacity)
        self._updated = now

    def take(self, now: float) -> float:
        """Takes one and gives 0, or takes none and gives the seconds until there is one."""
        self._level = min(self._capacity, self._level + (now - self._updated) * self._per_s)
        self._updated = now
        if self._level < 1:
            return (1 - self._level) / self._per_s
        self._level -= 1
        return 0.0
