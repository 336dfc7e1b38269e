"""A KV pool as one tensor, which kernels and peers can work on: what transports between GPUs need of an engine."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from msgspec import Struct
from torch import Tensor


class Geometry(Struct, frozen=True):
    """All that two pools must have in common for a block of one to be a block of the other; `num_blocks` may differ."""

    shape: tuple[int, ...]
    """[num_layers, num_blocks, num_kv_heads, 2, block_size, head_dim]"""
    dtype: str

    def fits(self, other: "Geometry") -> bool:
        return self.dtype == other.dtype and _without_blocks(self.shape) == _without_blocks(other.shape)


def _without_blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:]


@dataclass(frozen=True)
class DevicePool:
    """`kv` [num_layers, num_blocks, num_kv_heads, 2 (K, V), block_size, head_dim], contiguous.

    On a GPU it MUST lie in memory that cudaMalloc gave (not in torch's expandable segments) for a peer to map it, and
    stay where it is. On the CPU, where tests run what GPUs do, any tensor will do.
    """

    kv: Tensor

    def __post_init__(self) -> None:
        if self.kv.dim() != 6 or self.kv.shape[3] != 2 or not self.kv.is_contiguous():
            raise ValueError(f"no pool of blocks: {tuple(self.kv.shape)}")

    @property
    def device(self) -> torch.device:
        return self.kv.device

    @property
    def num_blocks(self) -> int:
        return self.kv.shape[1]

    @cached_property
    def bytes_per_block(self) -> int:
        """Of all layers."""
        return math.prod(_without_blocks(self.kv.shape)) * self.kv.element_size()

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry(tuple(self.kv.shape), str(self.kv.dtype).removeprefix("torch."))

    @cached_property
    def device_id(self) -> str:
        """The same for every process that uses this device, and for no other device."""
        if self.device.type != "cuda":
            return self.device.type
        return str(torch.cuda.get_device_properties(self.device).uuid)
