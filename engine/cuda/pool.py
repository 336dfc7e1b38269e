"""The KV of all layers on a GPU: blocks, and within them heads, so that what a program reads is contiguous.

Through the host a block travels as it lies here, which is what `engine.kv_pool` gives and takes too.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels.move_blocks import copy_blocks
from ..kv_pool import bytes_per_block
from .runtime import Runtime


class CudaKvPool:
    """`kv` [layers, num_blocks, kv_heads, 2 (K, V), block_size, head_dim], uninitialised."""

    def __init__(
        self,
        runtime: Runtime,
        memory: Tensor,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
    ) -> None:
        """`memory`: uint8 [num_blocks * bytes_per_block]."""
        self._runtime = runtime
        self.num_blocks, self.block_size = num_blocks, block_size
        self.bytes_per_block = bytes_per_block(num_layers, block_size, num_kv_heads, head_dim, dtype)
        shape = (num_layers, num_blocks, num_kv_heads, 2, block_size, head_dim)
        self.kv = memory.view(dtype).view(shape)
        self.layers = self.kv.unbind(0)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """(source block, destination block), in this order: no block is written before it is read."""
        if pairs:
            ids = self._runtime.pinned(len(pairs), 2)
            ids.copy_(torch.tensor(pairs, dtype=torch.int32))
            copy_blocks(self.kv, ids.to(self.kv.device, non_blocking=True))

    def read(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        """As `KvPool.read`. Waits for the bytes, beside what is being computed."""
        with self._runtime.aside():
            blocks = self._bytes[:, torch.tensor(block_ids, device=self.kv.device)].transpose(0, 1).contiguous()
            host = self._runtime.pinned(len(block_ids) * self.bytes_per_block, dtype=torch.uint8)
            host.copy_(blocks.flatten(), non_blocking=True)
            self._runtime.finish_aside()
        if out is None:
            return host.numpy().data
        np.frombuffer(out, np.uint8)[:] = host.numpy()
        return out

    def write(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """As `KvPool.write`. Beside what is being computed; the caller joins before it computes with these blocks."""
        expected = len(block_ids) * self.bytes_per_block
        if payload.nbytes != expected:
            raise ValueError(f"{payload.nbytes} bytes given for {len(block_ids)} blocks, which take {expected}")
        host = self._runtime.pinned(expected, dtype=torch.uint8)
        host.numpy()[:] = np.frombuffer(payload, np.uint8)
        num_layers, _, *block = self._bytes.shape
        with self._runtime.aside():
            blocks = host.to(self.kv.device, non_blocking=True).view(-1, num_layers, *block)
            ids = torch.tensor(block_ids, device=self.kv.device)
            self._bytes.index_copy_(1, ids, blocks.transpose(0, 1).contiguous())

    @property
    def _bytes(self) -> Tensor:
        """`kv` as uint8: the last dimension is a head's bytes. Not every operator knows fp8."""
        return self.kv.view(torch.uint8)
