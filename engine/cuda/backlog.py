"""What an EAGLE head has yet to follow: the last tokens of each sequence, with the target's features of them.

A head's KV is needed when it guesses. Where it rarely does, following token by token would take short steps a tenth
longer: so a token that comes without guesses leaves its features here, and is followed together with those after it.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ...kernels.stash_rows import MAX_STREAMS, Stash, stash_rows
from ..eagle.cache import NOWHERE
from ..streams import Streams
from .inputs import TokenInputs
from .runtime import Runtime

MAX_LENGTH, MAX_BYTES = 128, 128 << 20
"""Tokens of a sequence, and of features of all; at least one token each."""


class Backlog:
    def __init__(self, runtime: Runtime, num_slots: int, feature_size: int, dtype: torch.dtype) -> None:
        room = MAX_BYTES // ((num_slots + 1) * feature_size * dtype.itemsize)
        self.length = max(1, min(MAX_LENGTH, room))
        """Tokens of each sequence."""
        # The last entry is that of no sequence.
        shape, device = (num_slots + 1, self.length), runtime.device
        self.features = torch.zeros(*shape, feature_size, dtype=dtype, device=device)
        """[slots + 1, length, feature_size], rings: see take_stashed."""
        self.token_ids = torch.zeros(shape, dtype=torch.int32, device=device)
        self.positions = torch.full(shape, NOWHERE, dtype=torch.int32, device=device)

    # Within a step, captured or not.

    def add(self, streams: Sequence[Tensor], inputs: TokenInputs, last_tokens: Tensor) -> Stash:
        """The first tokens of a step, N, each of a sequence of its own. `streams`, [N, hidden_size] each, are their
        features, side by side. What is still to be stashed, as much as one launch can do."""
        num_tokens, width = streams[0].shape
        stash = Stash(
            streams[:MAX_STREAMS],
            inputs.token_ids[:num_tokens],
            inputs.rows[:num_tokens],
            inputs.positions[:num_tokens],
            last_tokens,
            self.features,
            self.token_ids,
            self.positions,
        )
        for first in range(MAX_STREAMS, len(streams), MAX_STREAMS):
            stash_rows(stash._replace(streams=streams[first : first + MAX_STREAMS], first_column=first * width))
        return stash


class LaggingStreams(Streams):
    """Of a step whose first `num_lagging` tokens are left in the backlog: `features` are those of the others."""

    def __init__(
        self,
        wanted: Collection[int],
        backlog: Backlog,
        inputs: TokenInputs,
        num_lagging: int,
        last_tokens: Tensor,
    ) -> None:
        super().__init__(wanted)
        self._backlog, self._inputs, self._num_lagging = backlog, inputs, num_lagging
        self._last_tokens = last_tokens
        self._left: list[Tensor] = []

    def catch(self, index: int, x: Tensor) -> None:
        """See Streams."""
        if self.wants(index):
            super().catch(index, x[self._num_lagging :])
            self._left.append(x[: self._num_lagging])

    def leave(self) -> Stash:
        """See Streams."""
        assert len(self._left) == len(self._wanted), "streams of one step, after it"
        return self._backlog.add(self._left, self._inputs, self._last_tokens)
