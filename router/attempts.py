"""The attempts that are open: of each placement, and of each worker."""

import logging

from .sequence import Attempt, WorkerId

log = logging.getLogger(__name__)


class Attempts:
    """Each from its placement until its last sequence has left and every worker has answered what it was told."""

    def __init__(self) -> None:
        self.by_placement: dict[int, Attempt] = {}
        self._by_worker: dict[WorkerId, dict[int, Attempt]] = {}

    @property
    def is_empty(self) -> bool:
        return not self.by_placement and not any(self._by_worker.values())

    @property
    def num_sequences(self) -> int:
        return sum(len(attempt.sequences) for attempt in self.by_placement.values())

    def of(self, worker: WorkerId) -> list[Attempt]:
        """That this worker takes part in, or still has to answer a cancel of."""
        return list(self._by_worker.get(worker, {}).values())

    def find(self, placement: int, worker: WorkerId) -> Attempt | None:
        """None if it is no longer open, or never was the worker's."""
        attempt = self.by_placement.get(placement)
        if attempt is None or worker not in (attempt.decode, attempt.prefill):
            log.debug("late message for placement %d", placement)
            return None
        return attempt

    def open(self, attempt: Attempt) -> None:
        self.by_placement[attempt.placement] = attempt
        for worker in attempt.workers:
            self._by_worker.setdefault(worker, {})[attempt.placement] = attempt

    def close_if_done(self, attempt: Attempt) -> None:
        if attempt.sequences or attempt.awaited:
            return
        self.by_placement.pop(attempt.placement, None)
        for worker in attempt.workers:
            self._by_worker.get(worker, {}).pop(attempt.placement, None)

    def forget(self, worker: WorkerId) -> None:
        """It is gone."""
        self._by_worker.pop(worker, None)
