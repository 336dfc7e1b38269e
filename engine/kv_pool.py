"""The tensors behind the block ids: keys and values of every layer, in slots of one token."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .span import Span

History = Callable[[int], tuple[Tensor, Tensor]]
"""Of a layer: the K and the V that a span's tokens see, each [1, kv_heads, positions, head_dim]."""


class KvPool:
    """`kv` [layers, kv_heads, 2 (K, V), num_blocks * block_size, head_dim], uninitialised.

    What attention reads for one head, its K or V over a run of ascending blocks, is one piece of memory, and a view: a
    token's heads side by side would be read at half the speed.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        first_position: int = 0,
    ) -> None:
        """Positions of a sequence before `first_position` hold nothing, and are seen by none of its tokens."""
        self._first_position = first_position
        self.num_blocks, self.block_size = num_blocks, block_size
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.kv = torch.empty(num_layers, num_kv_heads, 2, num_blocks * block_size, head_dim, dtype=dtype)
        self._layers = self.kv.unbind(0)
        self._blocks = self.kv.view(num_layers, num_kv_heads * 2, num_blocks, block_size * head_dim)
        self._bytes = self._blocks.view(torch.uint8).numpy()

    @property
    def bytes_per_block(self) -> int:
        num_layers, num_parts, _, num_bytes = self._bytes.shape
        return num_layers * num_parts * num_bytes

    def store(self, layer_id: int, slots: Tensor, new: Tensor) -> None:
        """K and V of new tokens, [n, 2 * kv_heads, head_dim], into int64 slots [n]."""
        by_head = new.view(len(new), 2, self.num_kv_heads, self.head_dim).permute(2, 1, 0, 3)
        self._layers[layer_id].index_copy_(2, slots, by_head)

    def history(self, span: Span, windows: Sequence[int | None]) -> History:
        """What a span's tokens see: without a copy if it is a run, else gathered a layer at a time."""
        firsts = [max(self._first_position, span.first_visible(window)) for window in windows]
        return self._view(span, firsts) if span.is_run else self._gatherer(span, firsts)

    def _view(self, span: Span, firsts: Sequence[int]) -> History:
        start = span.block_ids[0] * self.block_size
        by_first = {first: _layers(self.kv[:, :, :, start + first : start + span.end]) for first in {*firsts}}
        layers = [by_first[first][layer_id] for layer_id, first in enumerate(firsts)]
        return layers.__getitem__

    def _gatherer(self, span: Span, firsts: Sequence[int]) -> History:
        block_ids, shape = torch.tensor(span.block_ids), (1, self.num_kv_heads, 2, -1, self.head_dim)

        def gather(layer_id: int) -> tuple[Tensor, Tensor]:
            slots = self._blocks[layer_id].index_select(1, block_ids).view(shape)
            return _layers(slots[:, :, :, firsts[layer_id] : span.end])[0]

        return gather

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """(source block, destination block), in this order."""
        for source, destination in pairs:
            self._blocks[:, :, destination] = self._blocks[:, :, source]

    def read(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        """A copy of these blocks, block by block; within one [layers, kv_heads, 2, block_size, head_dim]. In `out`, if
        given."""
        num_layers, num_parts, _, num_bytes = self._bytes.shape
        flat = (
            np.empty(len(block_ids) * self.bytes_per_block, np.uint8) if out is None else np.frombuffer(out, np.uint8)
        )
        for part, block_id in zip(flat.reshape(-1, num_layers, num_parts, num_bytes), block_ids, strict=True):
            part[:] = self._bytes[:, :, block_id]
        return flat.data

    def write(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """Raises ValueError if `payload` is not `len(block_ids) * bytes_per_block` long."""
        given = np.frombuffer(payload, np.uint8)
        expected = len(block_ids) * self.bytes_per_block
        if given.size != expected:
            raise ValueError(f"{given.size} bytes given for {len(block_ids)} blocks, which take {expected}")
        num_layers, num_parts, _, num_bytes = self._bytes.shape
        for part, block_id in zip(given.reshape(-1, num_layers, num_parts, num_bytes), block_ids, strict=True):
            self._bytes[:, :, block_id] = part


def bytes_per_block(num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    return num_layers * block_size * 2 * num_kv_heads * head_dim * dtype.itemsize


def _layers(slots: Tensor) -> list[tuple[Tensor, Tensor]]:
    """[layers, kv_heads, 2, slots, head_dim] -> K and V of each layer, each [1, kv_heads, slots, head_dim]."""
    keys, values = slots.unsqueeze(1).unbind(3)
    return list(zip(keys.unbind(0), values.unbind(0), strict=True))
