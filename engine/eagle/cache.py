"""What a head keeps of the tokens whose KV the target's pool holds, under the same block ids.

Slot p holds the head's K and V of the token of position p with the feature of p - 1 (which published descriptions put
at p - 1; rotary attention sees distances alone). So it depends on the tokens up to p and on no later one, as the
target's KV does: blocks are shared, copied, found again and sent together with the target's. Slot 0 stays empty.
Beside it, of each block, the hidden state of the last position that was computed in it: what the slot after it needs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kv_pool import KvPool
from .config import EagleConfig

FIRST_SLOT = 1
NOWHERE = -1


class EagleCache:
    def __init__(self, config: EagleConfig, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        layer = config.layer
        self.kv = KvPool(
            num_layers=1,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=layer.num_kv_heads,
            head_dim=layer.head_dim,
            dtype=dtype,
            first_position=FIRST_SLOT,
        )
        self._hidden = torch.empty(num_blocks, layer.hidden_size, dtype=dtype)
        self._positions = [NOWHERE] * num_blocks
        """Of each block: whose hidden state it has."""

    def hidden_at(self, position: int, block_table: Sequence[int]) -> Tensor | None:
        """[hidden]; None if it is not there: its block came from another pool without it, or a later position was
        computed in the block (its sequence has gone back, or it is the copy of another's)."""
        block_id = block_table[position // self.kv.block_size]
        return self._hidden[block_id] if self._positions[block_id] == position else None

    def keep(self, start: int, hidden: Tensor, block_table: Sequence[int]) -> None:
        """Of positions `start`, `start + 1`, … [n, hidden]: what `hidden_at` may be asked for."""
        size, end = self.kv.block_size, start + len(hidden)
        kept = [*range((start // size + 1) * size - 1, end - 1, size), end - 1]
        block_ids = [block_table[position // size] for position in kept]
        self._hidden[block_ids] = hidden[[position - start for position in kept]]
        for block_id, position in zip(block_ids, kept, strict=True):
            self._positions[block_id] = position

    # Blocks as engine.joined_pools has them: hidden states are copied within the pool, but do not leave it.

    @property
    def bytes_per_block(self) -> int:
        return self.kv.bytes_per_block

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.kv.copy(pairs)
        for source, destination in pairs:
            self._hidden[destination] = self._hidden[source]
            self._positions[destination] = self._positions[source]

    def read(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        return self.kv.read(block_ids, out)

    def write(self, block_ids: Sequence[int], payload: memoryview) -> None:
        self.kv.write(block_ids, payload)
        for block_id in block_ids:
            self._positions[block_id] = NOWHERE

    def read_hidden(self, block_id: int) -> memoryview:
        """The position, int64, and its hidden state."""
        hidden = self._hidden[block_id].view(torch.uint8).numpy().tobytes()
        return memoryview(self._positions[block_id].to_bytes(8, "little", signed=True) + hidden)

    def write_hidden(self, block_id: int, payload: memoryview) -> None:
        """What `read_hidden` gave. Raises ValueError on a wrong size."""
        own = self._hidden[block_id].view(torch.uint8)
        if payload.nbytes != 8 + own.nbytes:
            raise ValueError(f"{payload.nbytes} bytes given for a hidden state, which takes {8 + own.nbytes}")
        own.copy_(torch.frombuffer(bytearray(payload[8:]), dtype=torch.uint8))
        self._positions[block_id] = int.from_bytes(payload[:8], "little", signed=True)
