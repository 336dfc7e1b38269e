"""What an engine's blocks hold: the model's KV, and that of a head that follows it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ModelConfig
from ..joined_pools import Blocks, JoinedPools
from ..kv_pool import bytes_per_block
from .pool import CudaKvPool
from .runtime import Runtime


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """Of one layer or more that are alike."""

    num_layers: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, config: ModelConfig, block_size: int, dtype: torch.dtype) -> "PoolLayout":
        return cls(config.num_layers, block_size, config.num_kv_heads, config.head_dim, dtype)

    @property
    def bytes_per_block(self) -> int:
        return bytes_per_block(self.num_layers, self.block_size, self.num_kv_heads, self.head_dim, self.dtype)

    def pool(self, runtime: Runtime, memory: Tensor, num_blocks: int) -> CudaKvPool:
        """`memory`: uint8 [num_blocks * bytes_per_block]."""
        return CudaKvPool(
            runtime,
            memory,
            num_layers=self.num_layers,
            num_blocks=num_blocks,
            block_size=self.block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
        )

    def with_layers_of(self, other: "PoolLayout") -> "PoolLayout | None":
        """Of both, if a layer of one is like a layer of the other."""
        mine = (self.block_size, self.num_kv_heads, self.head_dim, self.dtype)
        if mine != (other.block_size, other.num_kv_heads, other.head_dim, other.dtype):
            return None
        return PoolLayout(self.num_layers + other.num_layers, *mine)


@dataclass(frozen=True, slots=True)
class Pools:
    model: CudaKvPool
    head: CudaKvPool | None
    blocks: Blocks
    """All that a block holds, as transports move it: layer by layer, the head's last."""
    kv: Tensor | None
    """The same as one tensor, as `CudaKvPool.kv`, for transports that move blocks on the device. None where the head's
    layer is not like the model's: blocks then travel through the host."""

    @classmethod
    def plain(cls, pool: CudaKvPool) -> "Pools":
        return cls(pool, None, pool, pool.kv)

    @classmethod
    def headed(
        cls, runtime: Runtime, memory: Tensor, num_blocks: int, *, model: PoolLayout, head: PoolLayout
    ) -> "Pools":
        """One memory for both, uint8 [num_blocks * (bytes of a block of both)]."""
        num_bytes = num_blocks * model.bytes_per_block
        own = model.pool(runtime, memory[:num_bytes], num_blocks)
        heads = head.pool(runtime, memory[num_bytes:], num_blocks)
        joined = model.with_layers_of(head)
        if joined is None:
            return cls(own, heads, JoinedPools(own, heads), None)
        whole = joined.pool(runtime, memory, num_blocks)
        return cls(own, heads, whole, whole.kv)
