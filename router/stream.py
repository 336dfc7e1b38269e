"""The tokens of one job on their way from the ledger to the HTTP handler."""

import asyncio
from collections.abc import Callable, Sequence

from ..wire.logprobs import TokenLogprobs
from .job import JobError, JobTimings, JobWorkers, NewTokens
from .sequence import Entry, WorkerId
from .stages import timings
from .timelines import name_of


class JobStream:
    """A list that the ledger appends to, and one wake-up for whoever waits; implements `Stream` and `Sink`.

    It lets go of its entry when the job has ended: the two refer to each other, and long prompts must not wait for the
    garbage collector.
    """

    def __init__(
        self,
        *,
        stop: Callable[[Entry, int], None],
        cancel: Callable[[Entry], None],
        clock: Callable[[], float],
    ):
        self.entry: Entry | None = None
        """None once the job has ended."""
        self._stop = stop
        self._cancel = cancel
        self._clock = clock
        self.prompt_logprobs: Sequence[TokenLogprobs] = ()
        self.pooled = b""
        self._arrived: list[NewTokens] = []
        self._error: JobError | None = None
        self._timings = JobTimings(0.0, 0.0, 0.0, 0.0, 0)
        self._placed: tuple[WorkerId | None, WorkerId | None] = (None, None)
        """Prefill and decode worker, once the job has ended."""
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> Sequence[NewTokens]:
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if self._ended:
                return ()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        arrived, self._arrived = self._arrived, []
        return arrived

    def stop(self, choice: int) -> None:
        if self.entry is not None:
            self._stop(self.entry, choice)

    def cancel(self) -> None:
        if self.entry is not None:
            self._cancel(self.entry)

    def timings(self) -> JobTimings:
        return self._timings if self.entry is None else timings(self.entry, self._clock())

    def workers(self) -> JobWorkers:
        prefill, decode = self._placed if self.entry is None else (self.entry.prefill, self.entry.decode)
        return JobWorkers(name_of(prefill), name_of(decode))

    def push(self, tokens: NewTokens) -> None:
        self._arrived.append(tokens)
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._let_go()

    def fail(self, error: JobError) -> None:
        self._error = error
        self._let_go()

    def _let_go(self) -> None:
        self._timings = self.timings()
        if self.entry is not None:
            self._placed = self.entry.prefill, self.entry.decode
        self.entry = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
