"""Residual streams of a step, caught on their way through a model's layers."""

from collections.abc import Collection

import torch
from torch import Tensor

from ..kernels.stash_rows import Stash


class Streams:
    """Stream i is what enters layer i; the one after the last layer, not normalised yet, has the number of layers."""

    def __init__(self, wanted: Collection[int]) -> None:
        self._wanted = frozenset(wanted)
        self._caught: list[Tensor] = []

    def wants(self, index: int) -> bool:
        return index in self._wanted

    def catch(self, index: int, x: Tensor) -> None:
        """Stream `index` of all tokens, [T, hidden_size]; one that is wanted stays as it is."""
        if index in self._wanted:
            self._caught.append(x)

    def leave(self) -> Stash | None:
        """After the model's part of a step: what is not followed in it, to be left for later."""
        return None

    @property
    def features(self) -> Tensor:
        """All that were wanted side by side, the first layer's first: [T, num_wanted * hidden_size]."""
        assert len(self._caught) == len(self._wanted), "streams of one step, after it"
        return torch.cat(self._caught, -1)


NO_STREAMS = Streams(())
