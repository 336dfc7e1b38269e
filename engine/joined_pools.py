"""Several pools with the same block ids: to transports, their blocks are one."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Blocks(Protocol):
    @property
    def bytes_per_block(self) -> int: ...

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """(source block, destination block), in this order."""

    def read(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        """A copy of these blocks, block by block; in `out`, if given."""

    def write(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """Raises ValueError if `payload` is not `len(block_ids) * bytes_per_block` long."""


class JoinedPools:
    """`Blocks` of which each holds that of the first pool, then that of the second, and so on."""

    def __init__(self, *pools: Blocks) -> None:
        self._pools = pools

    @property
    def bytes_per_block(self) -> int:
        return sum(pool.bytes_per_block for pool in self._pools)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        for pool in self._pools:
            pool.copy(pairs)

    def read(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        """See Blocks."""
        size = len(block_ids) * self.bytes_per_block
        flat = np.empty(size, np.uint8) if out is None else np.frombuffer(out, np.uint8)
        for pool, part in zip(self._pools, self._parts(flat, len(block_ids)), strict=True):
            part[:] = np.frombuffer(pool.read(block_ids), np.uint8).reshape(part.shape)
        return flat.data

    def write(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """See Blocks."""
        given, expected = np.frombuffer(payload, np.uint8), len(block_ids) * self.bytes_per_block
        if given.size != expected:
            raise ValueError(f"{given.size} bytes given for {len(block_ids)} blocks, which take {expected}")
        for pool, part in zip(self._pools, self._parts(given, len(block_ids)), strict=True):
            pool.write(block_ids, part.reshape(-1).data)

    def _parts(self, flat: np.ndarray, num_blocks: int) -> list[np.ndarray]:
        """Of each pool, [num_blocks, bytes_per_block]: views."""
        ends = np.cumsum([pool.bytes_per_block for pool in self._pools])
        return np.split(flat.reshape(num_blocks, self.bytes_per_block), ends[:-1], axis=1)
