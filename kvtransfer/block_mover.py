"""Moves blocks of a pool: into a buffer, out of one, or straight into a peer's pool. Returns when they have moved.

For a thread of its own: waiting for the GPU, it holds neither the interpreter's lock nor the streams that compute.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..kernels.move_blocks import gather_blocks, scatter_blocks, store_blocks_to_peer
from .device_memory import copy_async
from .device_pool import DevicePool

HIDDEN_PROGRAMS = 8
"""Of a kernel beside which the sender computes: moves KV several times as fast as prefill makes it. Where somebody
waits for the transfer, a kernel gets the whole GPU."""
LONG_RUN_BYTES = 4 << 20
"""Runs of neighbours in both pools that are as long, in a layer, are copied by the copy engines: faster than a kernel,
and the GPU computes on. Shorter ones would wait for the engine's start again and again."""


class Run(NamedTuple):
    """Neighbouring blocks, which go to neighbours."""

    source: int
    target: int
    length: int


class BlockMover:
    """On a stream of its own, ahead of other work. One thread at a time."""

    def __init__(self, pool: DevicePool):
        self._kv = pool.kv
        self._device = pool.device
        self._bytes_per_block = pool.bytes_per_block
        self._cuda = pool.device.type == "cuda"
        if self._cuda:
            self._stream = torch.cuda.Stream(self._device, priority=-1)
        self._copy = copy_async if self._cuda else _memmove

    def warm_up(self) -> None:
        """Compiles the kernels, which else the first transfer would wait for. Before the pool is in use: block 0 is
        moved onto itself."""
        if self._cuda:
            self.scatter(self.gather([0], self.buffer(1)), [0])
            self.store([0], self._kv.data_ptr(), tuple(self._kv.shape), [0])

    def buffer(self, num_blocks: int) -> Tensor:
        """For as many blocks, uint8."""
        with self.on_stream():
            return torch.empty(num_blocks * self._bytes_per_block, dtype=torch.uint8, device=self._device)

    def gather(self, block_ids: Sequence[int], buffer: Tensor, *, hidden: bool = False) -> Tensor:
        """The part of `buffer` that these blocks take, filled."""
        part = buffer[: len(block_ids) * self._bytes_per_block]
        with self.on_stream():
            gather_blocks(self._kv, self._ids(block_ids), self._blocks(part), num_programs=_programs(hidden))
        return part

    def scatter(self, buffer: Tensor, block_ids: Sequence[int]) -> None:
        """What `gather` of a pool with the same geometry gave."""
        part = buffer[: len(block_ids) * self._bytes_per_block]
        with self.on_stream():
            scatter_blocks(self._blocks(part), self._kv, self._ids(block_ids))

    def store(
        self,
        block_ids: Sequence[int],
        peer_address: int,
        peer_shape: tuple[int, ...],
        peer_block_ids: Sequence[int],
        *,
        hidden: bool = False,
    ) -> None:
        """Into a pool of the same geometry that this process maps at `peer_address`."""
        runs = common_runs(block_ids, peer_block_ids)
        if len(block_ids) * self._bytes_per_block >= LONG_RUN_BYTES * self._kv.shape[0] * len(runs):
            with self.on_stream():
                self._copy_runs(runs, peer_address, peer_shape[1])
            return
        with self.on_stream():
            ids, peer_ids = self._ids([*block_ids, *peer_block_ids]).chunk(2)
            store_blocks_to_peer(
                self._kv,
                ids,
                peer_address,
                peer_ids,
                peer_shape=peer_shape,
                num_programs=_programs(hidden),
            )

    def _copy_runs(self, runs: Sequence[Run], peer_address: int, peer_num_blocks: int) -> None:
        num_layers, num_blocks = self._kv.shape[:2]
        layer_block_bytes = self._bytes_per_block // num_layers
        stream = self._stream.cuda_stream if self._cuda else 0
        for layer in range(num_layers):
            for run in runs:
                source = self._kv.data_ptr() + (layer * num_blocks + run.source) * layer_block_bytes
                target = peer_address + (layer * peer_num_blocks + run.target) * layer_block_bytes
                self._copy(target, source, run.length * layer_block_bytes, stream)

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Work given within is done when it is left."""
        if not self._cuda:
            yield
            return
        done = torch.cuda.Event(blocking=True)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield
            done.record(self._stream)
        done.synchronize()

    def _ids(self, block_ids: Sequence[int]) -> Tensor:
        return torch.tensor(block_ids, dtype=torch.int32, device=self._device)

    def _blocks(self, part: Tensor) -> Tensor:
        """[n, num_layers, num_kv_heads, 2, block_size, head_dim] of bytes."""
        num_layers, _, *rest = self._kv.shape
        return part.view(self._kv.dtype).view(-1, num_layers, *rest)


def common_runs(sources: Sequence[int], targets: Sequence[int]) -> list[Run]:
    """Where both ids go up by one from block to block."""
    assert len(sources) == len(targets)
    ids = np.array([sources, targets], np.int64)
    if not ids.size:
        return []
    starts = np.concatenate(([0], np.flatnonzero((np.diff(ids) != 1).any(0)) + 1))
    lengths = np.diff(np.append(starts, ids.shape[1]))
    return [Run(*run) for run in np.vstack((ids[:, starts], lengths)).T.tolist()]


def _memmove(target: int, source: int, num_bytes: int, stream: int) -> None:
    ctypes.memmove(target, source, num_bytes)


def _programs(hidden: bool) -> int | None:
    return HIDDEN_PROGRAMS if hidden else None
