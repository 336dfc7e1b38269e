"""What a worker's heartbeats say. Written by the worker's loop, read by the link's thread."""

import time
from collections.abc import Callable

from ..wire.messages import Heartbeat, WorkerState, WorkerStats


class Pulse:
    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.state: WorkerState = "loading"
        self.stats: WorkerStats | None = None
        self.held: tuple[str, ...] = ()
        self._clock = clock
        self._working_since: float | None = None

    def working(self) -> None:
        """A step begins, or the one before it just ended: progress."""
        self._working_since = self._clock()

    def idle(self) -> None:
        self._working_since = None

    def beat(self) -> Heartbeat:
        since = self._working_since
        return Heartbeat(self.state, 0.0 if since is None else self._clock() - since, self.stats, self.held)
