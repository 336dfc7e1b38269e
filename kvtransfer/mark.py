"""When work given to a device is done: what a thread waits for."""

from typing import Any

import torch


class Mark:
    """On a CPU, work is done when it has been given; but for a message on its way, which is `work`."""

    def __init__(self, event: torch.cuda.Event | None = None, work: Any = None):
        self._event = event
        self._work = work

    @classmethod
    def of(cls, stream: torch.cuda.Stream, *, spin: bool = False) -> "Mark":
        """All that `stream` was given so far. With `spin` a thread that waits keeps its processor, and wakes sooner."""
        event = torch.cuda.Event(blocking=not spin)
        event.record(stream)
        return cls(event)

    def wait(self) -> None:
        """Raises RuntimeError where the work has failed."""
        if self._event is not None:
            self._event.synchronize()
        if self._work is not None:
            work, self._work = self._work, None  # gloo's would wait again
            work.wait()


DONE = Mark()
