"""Hidden states that an EAGLE head needs to guess on (see engine/eagle/cache.py), by the blocks of the target's pool.

Of each block it is that of the last position computed in it, with the position beside it. Steps write and read both
on the device: the host need not know how many guesses were right.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels.take_stashed import Stashed, states_before, take_stashed
from ..eagle.cache import NOWHERE
from .backlog import Backlog
from .runtime import Runtime

POSITION_BYTES = 8


class HeadCache:
    def __init__(
        self,
        runtime: Runtime,
        block_tables: Tensor,
        *,
        num_blocks: int,
        block_size: int,
        hidden_size: int,
        dtype: torch.dtype,
    ) -> None:
        """`block_tables` int32 [R, max_blocks]: those of every step."""
        self._runtime, self._block_tables = runtime, block_tables
        self.num_blocks, self._block_size = num_blocks, block_size
        device = runtime.device
        # The last entry takes what is not kept.
        self._hidden = torch.zeros(num_blocks + 1, hidden_size, dtype=dtype, device=device)
        self._positions = torch.full((num_blocks + 1,), NOWHERE, dtype=torch.int32, device=device)

    # Within a step, captured or not.

    def before(self, rows: Tensor, positions: Tensor) -> Tensor:
        """int32 [T] each, of tokens -> the hidden state of the position before, [T, hidden]; zeros where it is not
        there (see `EagleCache.hidden_at`), and of padding (row −1)."""
        wanted = positions - 1
        blocks = self._blocks(rows, wanted.clamp(min=0))
        is_there = (rows >= 0) & (wanted >= 0) & (self._positions[blocks] == wanted)
        return torch.where(is_there[:, None], self._hidden[blocks], 0)

    def keep(self, rows: Tensor, positions: Tensor, hidden: Tensor, is_last: Tensor) -> None:
        """Of tokens that stay, [T] and [T, hidden]: `is_last` bool [T] is true of the last of each row, and may be
        true of no other but the last of a block."""
        self._keep_at(torch.where(is_last, self._blocks(rows, positions), self.num_blocks), positions, hidden)

    def _keep_at(self, places: Tensor, positions: Tensor, hidden: Tensor) -> None:
        self._hidden.index_copy_(0, places, hidden)
        self._positions.index_copy_(0, places, positions)

    def take(self, slots: Tensor, backlog: Backlog) -> Stashed:
        """All that was left of these sequences, int32 [S], −1 for none; then nothing is. It is all to be kept, by
        `keep_taken`: the states before it come from what is kept now."""
        return take_stashed(
            slots, backlog.token_ids, backlog.positions, self._block_tables, self._positions, self._block_size
        )

    def before_taken(self, taken: Stashed, hidden: Tensor) -> Tensor:
        """As `before`, of tokens whose own states are `hidden` [T, hidden]."""
        return states_before(hidden, taken.sources, self._hidden)

    def keep_taken(self, taken: Stashed, hidden: Tensor) -> None:
        self._keep_at(taken.kept_at, taken.positions, hidden)

    def ends_block(self, positions: Tensor) -> Tensor:
        return (positions + 1) % self._block_size == 0

    def _blocks(self, rows: Tensor, positions: Tensor) -> Tensor:
        indices = (positions // self._block_size).long()
        return self._block_tables[rows.clamp(min=0).long(), indices].long()

    # Between steps.

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """(source block, destination block), in this order."""
        host = self._runtime.pinned(2, len(pairs), dtype=torch.int64)
        host.copy_(torch.tensor(pairs).t())
        sources, destinations = host.to(self._hidden.device, non_blocking=True)
        self._hidden[destinations] = self._hidden[sources]
        self._positions[destinations] = self._positions[sources]

    def forget(self, block_ids: Sequence[int]) -> None:
        """They are written with another's KV; told aside."""
        with self._runtime.aside():
            self._positions[torch.tensor(block_ids, device=self._positions.device)] = NOWHERE

    def read(self, block_id: int) -> memoryview:
        """As `EagleCache.read_hidden`. Waits for the bytes, beside what is being computed."""
        with self._runtime.aside():
            position = self._runtime.pinned(1).copy_(self._positions[block_id : block_id + 1], non_blocking=True)
            hidden = self._hidden[block_id].view(torch.uint8)
            host = self._runtime.pinned(len(hidden), dtype=torch.uint8).copy_(hidden, non_blocking=True)
            self._runtime.finish_aside()
        number = int(position).to_bytes(POSITION_BYTES, "little", signed=True)
        return memoryview(number + host.numpy().tobytes())

    def write(self, block_id: int, payload: memoryview) -> None:
        """As `EagleCache.write_hidden`. Beside what is being computed; the caller joins before it computes with it."""
        own = self._hidden[block_id].view(torch.uint8)
        if payload.nbytes != POSITION_BYTES + len(own):
            raise ValueError(
                f"{payload.nbytes} bytes given for a hidden state, which takes {POSITION_BYTES + len(own)}"
            )
        host = self._runtime.pinned(len(own), dtype=torch.uint8)
        host.numpy()[:] = np.frombuffer(payload[POSITION_BYTES:], np.uint8)
        position = int.from_bytes(payload[:POSITION_BYTES], "little", signed=True)
        with self._runtime.aside():
            own.copy_(host, non_blocking=True)
            self._positions[block_id : block_id + 1].fill_(position)
