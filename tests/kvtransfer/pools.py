"""Pools of CPU tensors for transports between devices. What nobody may write is poisoned, and looked at again.

A receiver's pool lies in shared memory, which another process maps as CUDA IPC would map a GPU's.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from isthmus.kvtransfer.device_memory import DeviceMemoryError
from isthmus.kvtransfer.device_pool import DevicePool
from isthmus.tests.kvtransfer.blocks import BLOCK, Source, content
from torch import Tensor

NUM_BLOCKS = 4096
NUM_LAYERS = 2
SHAPE = (NUM_LAYERS, NUM_BLOCKS, 1, 2, 4, 16)
POISON = 0xFE  # a byte that no content has many of


class SharedPool:
    """A pool of blocks of `BLOCK` bytes, and who holds which. `fd` is its memory's."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("test-pool", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, NUM_BLOCKS * BLOCK)
        self._memory = np.frombuffer(mmap.mmap(self.fd, 0), np.uint8)
        self._memory[:] = POISON
        self.pool = DevicePool(torch.from_numpy(self._memory).view(torch.float32).view(SHAPE))
        assert self.pool.bytes_per_block == BLOCK
        self._layers = self._memory.reshape(NUM_LAYERS, NUM_BLOCKS, -1)
        self._free = list(range(NUM_BLOCKS))

    def allocate(self, num_blocks: int) -> list[int]:
        """From both ends in turn, so that no two neighbours belong together."""
        block_ids = [self._free.pop(-(n % 2)) for n in range(num_blocks)]
        assert all(self.read(block) is None for block in block_ids), "a free block was written"
        return block_ids

    def free(self, block_ids: Sequence[int]) -> None:
        self._layers[:, block_ids] = POISON
        self._free += block_ids

    def write(self, block: int, payload: bytes) -> None:
        self._layers[:, block] = np.frombuffer(payload, np.uint8).reshape(NUM_LAYERS, -1)

    def read(self, block: int) -> bytes | None:
        """None if nobody wrote it, or not all of it."""
        payload = self._layers[:, block].tobytes()
        return None if bytes([POISON]) * 64 in payload else payload

    def check(self) -> None:
        assert (self._layers[:, self._free] == POISON).all(), "a free block was written"


class MemfdMapper:
    """Stands in for CUDA IPC: handles name a descriptor of the exporting process."""

    def __init__(self, shared: SharedPool | None = None):
        self._shared = shared
        self._open: dict[int, mmap.mmap] = {}

    def export(self, memory: Tensor) -> tuple[bytes, int]:
        assert self._shared is not None
        assert memory.data_ptr() == self._shared.pool.kv.data_ptr()
        return f"/proc/{os.getpid()}/fd/{self._shared.fd}".encode(), 0

    def open(self, handle: bytes, device: torch.device) -> int:
        try:
            descriptor = os.open(handle.decode(), os.O_RDWR)
        except OSError as error:
            raise DeviceMemoryError(str(error)) from error
        mapped = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        self._open[address] = mapped
        return address

    def close(self, address: int, device: torch.device) -> None:
        self._open.pop(address).close()

    @property
    def num_open(self) -> int:
        return len(self._open)


class PoolSource(Source):
    """Blocks in a sender's pool, overwritten as soon as the transfer is over."""

    def __init__(self, transfer_id: str, shared: SharedPool):
        self._shared = shared
        self._block_ids: list[int] = []
        super().__init__(transfer_id)

    @property
    def gone(self) -> bool:
        return self._gone

    @gone.setter
    def gone(self, gone: bool) -> None:
        self._gone = gone
        if gone:
            self._shared.free(self._block_ids)
            self._block_ids = []

    def place(self, first_block: int, num_blocks: int) -> list[int]:
        block_ids = self._shared.allocate(num_blocks)
        for n, block in enumerate(block_ids):
            self._shared.write(block, content(self.transfer_id, first_block + n))
        self._block_ids += block_ids
        return block_ids


@dataclass
class PoolTarget:
    """Blocks in a receiver's pool: free again as soon as the transport's promises say so, and not before."""

    transfer_id: str
    shared: SharedPool
    block_ids: list[int]
    claimed: bool = False
    _gone: bool = False
    done: bool = False
    kept: list[bytes | None] = field(default_factory=list)

    @property
    def blocks(self) -> list[bytes | None]:
        return self.kept if self._gone and not self.done else [self.shared.read(block) for block in self.block_ids]

    @property
    def whole(self) -> bool:
        return self.blocks == [content(self.transfer_id, block) for block in range(len(self.block_ids))]

    def claim(self) -> bool:
        assert not self.claimed, f"{self.transfer_id} is claimed twice"
        self.claimed = not self._gone
        return self.claimed

    def store(self, first_block: int, num_blocks: int, payload: memoryview) -> None:
        raise AssertionError("blocks between devices are not stored by hand")

    @property
    def gone(self) -> bool:
        return self._gone

    @gone.setter
    def gone(self, gone: bool) -> None:
        if self._gone or not gone:
            return
        self.kept, self._gone = self.blocks, True
        if not self.claimed and not self.done:
            self.shared.free(self.block_ids)

    def release(self) -> None:
        assert self.claimed
        assert self._gone
        assert not self.done
        self.claimed = False
        self.shared.free(self.block_ids)
