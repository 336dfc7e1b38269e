"""The way of a step's masks to the device: numbers that say whose they are, and the masks, in one copy.

Two host buffers are used in turn: what was uploaded may still be read when the next step's masks come, but not when
those of the one after that do, since a step is launched only when the last but one has given its result.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NUM_HOSTS = 2


class MaskStaging:
    def __init__(self, num_rows: int, num_words: int, device: torch.device | str) -> None:
        """As many numbers as rows, each of `num_words`."""
        size = num_rows * (1 + num_words)
        self._num_rows, self._num_words = num_rows, num_words
        self._device = torch.zeros(size, dtype=torch.int32, device=device)
        self.numbers, self.rows = self._device[:num_rows], self._device[num_rows:].view(num_rows, num_words)
        """On the device: int32 [N], [N, W]"""
        is_pinned = self._device.is_cuda
        self._hosts = [torch.empty(size, dtype=torch.int32, pin_memory=is_pinned) for _ in range(NUM_HOSTS)]
        # Views that are made once: making one takes about as long as the copy.
        self._views: dict[tuple[int, int], _View] = {}
        self._num_uploads = 0
        self._counting = np.arange(num_rows, dtype=np.int32)

    def upload(self, numbers: np.ndarray, places: Sequence[int], rows: Sequence[np.ndarray]) -> None:
        """`numbers` int32 [N], but at each of `places` that of a row, int32 or uint32 [W], in this order; once a step.
        Ordered on the current stream, without waiting."""
        self._num_uploads += 1
        view = self._view(self._num_uploads % NUM_HOSTS, len(rows))
        view.numbers[:] = numbers
        if rows:
            view.numbers[places] = self._counting[: len(rows)]
            np.concatenate(rows, out=view.rows, casting="unsafe")  # bits stay as they are
        view.target.copy_(view.source, non_blocking=True)

    def _view(self, index: int, num_rows: int) -> "_View":
        found = self._views.get((index, num_rows))
        if found is None:
            size = self._num_rows + num_rows * self._num_words
            source = self._hosts[index][:size]
            values = source.numpy()
            numbers, rows = values[: self._num_rows], values[self._num_rows :]
            found = self._views[index, num_rows] = _View(numbers, rows, source, self._device[:size])
        return found


class _View(NamedTuple):
    numbers: np.ndarray
    rows: np.ndarray
    """In the memory of `source`, as that of `numbers`."""
    source: Tensor
    target: Tensor
