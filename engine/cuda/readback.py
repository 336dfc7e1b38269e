"""The tokens that steps draw, on their way to the host.

Two host buffers are used in turn, as those of `inputs` are.
"""

import numpy as np
from torch import Tensor

from .runtime import Runtime


class Readback:
    def __init__(self, runtime: Runtime, tokens: Tensor) -> None:
        """Of `tokens`, int32 [N], on the device."""
        self._tokens = tokens
        self._host = [runtime.pinned(len(tokens)) for _ in range(2)]
        self._views: dict[tuple[int, int], tuple[Tensor, Tensor, np.ndarray]] = {}
        """Made once: making one takes about as long as the copy."""

    def take(self, parity: int, count: int) -> np.ndarray:
        """int32: the first `count`, once the step is done."""
        views = self._views.get((parity, count))
        if views is None:
            host = self._host[parity][:count]
            views = self._views[parity, count] = self._tokens[:count], host, host.numpy()
        device, host, tokens = views
        if count:
            host.copy_(device, non_blocking=True)
        return tokens
