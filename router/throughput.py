"""How fast sequences finish, to tell a refused client when to come back."""

from collections import deque

WINDOW_S = 30.0
DEFAULT_RETRY_AFTER_S = 5.0
MAX_RETRY_AFTER_S = 60.0


class Throughput:
    """Finished sequences of the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._finished: deque[tuple[float, int]] = deque()
        self._num_finished = 0

    def count(self, num_finished: int, now: float) -> None:
        if num_finished:
            self._finished.append((now, num_finished))
            self._num_finished += num_finished
        self._forget(now)

    def seconds_for(self, num_waiting: int, now: float) -> float:
        """In about how many seconds as many as wait now will have finished; 1 to 60."""
        self._forget(now)
        if not self._num_finished:
            return DEFAULT_RETRY_AFTER_S
        rate = self._num_finished / WINDOW_S
        return min(MAX_RETRY_AFTER_S, max(1.0, num_waiting / rate))

    def _forget(self, now: float) -> None:
        while self._finished and self._finished[0][0] <= now - WINDOW_S:
            self._num_finished -= self._finished.popleft()[1]
