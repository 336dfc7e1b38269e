"""How far the weights have been loaded, for the log: a bar every few seconds, none for what is loaded at once."""

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

INTERVAL_S = 3.0
WIDTH = 20


class LoadProgress:
    """Called with the bytes of each tensor."""

    def __init__(
        self,
        num_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        show: Callable[[str], None] = log.info,
    ) -> None:
        self._num_bytes, self._clock, self._show = num_bytes, clock, show
        self._num_done = 0
        self._start_s = self._shown_s = clock()

    def __call__(self, num_bytes: int) -> None:
        self._num_done += num_bytes
        now = self._clock()
        if now - self._shown_s >= INTERVAL_S:
            self._shown_s = now
            self._show(self.line(now))

    def line(self, now: float) -> str:
        """`loading weights ████████            40% of 15.0 GB, 2.1 GB/s`"""
        share = min(1.0, self._num_done / self._num_bytes)
        rate = self._num_done / max(now - self._start_s, 1e-9)
        bar = "█" * round(share * WIDTH)
        return f"loading weights {bar:{WIDTH}} {share:.0%} of {self._num_bytes / 1e9:.1f} GB, {rate / 1e9:.1f} GB/s"
