"""What an EAGLE head has yet to follow: the last tokens of each sequence, with the target's features of them.

A head's KV is needed when it guesses. Where it rarely does, following token by token would take short steps a tenth
longer: so a token that comes without guesses leaves its features here, and is followed together with those after it.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from ...kernels.stash_rows import stash_rows
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
        self._runtime = runtime
        # The last entry is that of no sequence.
        shape, device = (num_slots + 1, self.length), runtime.device
        self.features = torch.zeros(*shape, feature_size, dtype=dtype, device=device)
        """[slots + 1, length, feature_size], rings: see take_stashed."""
        self.token_ids = torch.zeros(shape, dtype=torch.int32, device=device)
        self.positions = torch.full(shape, NOWHERE, dtype=torch.int32, device=device)

    # Within a step, captured or not.

    def add(self, x: Tensor, inputs: TokenInputs, last_tokens: Tensor, first_column: int) -> None:
        """Of the first tokens of a step, each of a sequence of its own, some columns of their features, [N, width].
        They are read beside what the step does next, until `join`, and must stay as they are until then."""
        n = len(x)
        with self._runtime.beside():
            stash_rows(
                x,
                inputs.token_ids[:n],
                inputs.rows[:n],
                inputs.positions[:n],
                last_tokens,
                self.features,
                self.token_ids,
                self.positions,
                first_column,
            )

    def join(self) -> None:
        """The step goes on after what was added has been read. Then its memory may also be used again: that happens in
        the order of the step's own stream, captured or not."""
        self._runtime.join_beside()


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
        self._num_columns = 0
        self._read: list[Tensor] = []
        """Beside the step, until it joins: memory that is not to be used again before."""

    def catch(self, index: int, x: Tensor) -> None:
        """See Streams."""
        if self.wants(index):
            super().catch(index, x[self._num_lagging :])
            self._backlog.add(x[: self._num_lagging], self._inputs, self._last_tokens, self._num_columns)
            self._num_columns += x.shape[1]
            self._read.append(x)

    def join(self) -> None:
        """See Streams."""
        if self._read:
            self._backlog.join()
            self._read.clear()
