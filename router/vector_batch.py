"""The vectors of a request's prompts, as they come from the core."""

from collections.abc import Sequence

import numpy as np

from .job import Core, Job, JobError, Stream

MAX_AT_ONCE = 256
"""Prompts of one request that are queued or computed at a time: enough for full steps, and the queue stays open to
others."""


class VectorBatch:
    """Submits at once, as far as MAX_AT_ONCE goes, and raises JobError if nothing can be submitted."""

    def __init__(self, core: Core, jobs: Sequence[Job]):
        self._core = core
        self._jobs = jobs
        self._streams: list[Stream] = []
        self._cancelled = False
        self._submit(0)

    async def vectors(self) -> list[np.ndarray]:
        """fp32, one for each job, in order; fewer if it was cancelled. Raises JobError."""
        found: list[np.ndarray] = []
        while len(found) < len(self._jobs) and not self._cancelled:
            self._submit(len(found))
            vector = await self._vector(self._streams[len(found)])
            if vector is not None:
                found.append(vector)
        return found

    def cancel(self) -> None:
        """Lets go of all that runs. Safe twice, and at the end."""
        self._cancelled = True
        for stream in self._streams:
            stream.cancel()

    async def _vector(self, stream: Stream) -> np.ndarray | None:
        while await stream.next():
            pass
        if self._cancelled:
            return None
        vector = np.frombuffer(stream.pooled, "<f4")
        if not np.isfinite(vector).all():
            raise JobError(500, "the model's hidden states are no numbers")
        return vector

    def _submit(self, num_done: int) -> None:
        """A full queue is no error while some of ours are in it: the next try is when one of them has ended."""
        while len(self._streams) < min(len(self._jobs), num_done + MAX_AT_ONCE):
            try:
                self._streams.append(self._core.submit(self._jobs[len(self._streams)]))
            except JobError as error:
                if error.status == 503 and len(self._streams) > num_done:
                    return
                self.cancel()
                raise
