"""Moves blocks of a pool: into a buffer, out of one, or straight into a peer's pool. Returns when they have moved.

For a thread of its own: waiting for the GPU, it holds neither the interpreter's lock nor the streams that compute.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..kernels.move_blocks import gather_blocks, scatter_blocks, store_blocks_to_peer
from .device_memory import copy_rows_async
from .device_pool import DevicePool
from .mark import Mark

HIDDEN_PROGRAMS = 8
"""Of a kernel beside which the sender computes: moves KV several times as fast as prefill makes it. Where somebody
waits for the transfer, a kernel gets the whole GPU."""
LONG_RUN_BYTES = 32 << 20
"""Runs of neighbours in both pools that are as long, in all layers, are copied by the copy engines: 397 GB/s where a
kernel reaches 367, and the GPU computes on. Shorter ones would wait for the engine's start again and again."""


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
        self._stream: torch.cuda.Stream | None = None
        if pool.device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device, priority=-1)

    def warm_up(self) -> None:
        """Compiles the kernels, which else the first transfer would wait for. Before the pool is in use: block 0 is
        moved onto itself."""
        if self._stream is not None:
            buffer = self.buffer(1)
            self.gather([0], buffer)
            self.scatter(buffer, [0])
            self.store([0], self._kv.data_ptr(), tuple(self._kv.shape), [0])

    def buffer(self, num_blocks: int) -> Tensor:
        """For as many blocks, uint8."""
        with self._on_stream():
            return torch.empty(num_blocks * self._bytes_per_block, dtype=torch.uint8, device=self._device)

    def gather(self, block_ids: Sequence[int], buffer: Tensor, *, hidden: bool = False) -> None:
        """Fills the beginning of `buffer` with these blocks."""
        part = buffer[: len(block_ids) * self._bytes_per_block]
        with self._on_stream(spin=not hidden):
            gather_blocks(self._kv, self._ids(block_ids), self._blocks(part), num_programs=_programs(hidden))

    def scatter(self, buffer: Tensor, block_ids: Sequence[int]) -> None:
        """What `gather` of a pool with the same geometry gave."""
        part = buffer[: len(block_ids) * self._bytes_per_block]
        with self._on_stream(spin=True):
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
        pairs = np.array([block_ids, peer_block_ids], np.int32)
        starts = run_starts(pairs)
        with self._on_stream(spin=not hidden):
            if len(block_ids) * self._bytes_per_block >= LONG_RUN_BYTES * len(starts):
                self._copy_runs(runs_from(starts, pairs), peer_address, peer_shape[1])
            else:
                ids, peer_ids = torch.from_numpy(pairs).to(self._device)
                store_blocks_to_peer(
                    self._kv,
                    ids,
                    peer_address,
                    peer_ids,
                    peer_shape=peer_shape,
                    num_programs=_programs(hidden),
                )

    def _copy_runs(self, runs: Sequence[Run], peer_address: int, peer_num_blocks: int) -> None:
        """A run's part of each layer is a row of one copy, and the layers are as far apart as each pool has them."""
        num_layers, num_blocks = self._kv.shape[:2]
        layer_block_bytes = self._bytes_per_block // num_layers
        copy = _copy_rows if self._stream is None else partial(copy_rows_async, stream=self._stream.cuda_stream)
        for run in runs:
            copy(
                peer_address + run.target * layer_block_bytes,
                self._kv.data_ptr() + run.source * layer_block_bytes,
                pitches=(peer_num_blocks * layer_block_bytes, num_blocks * layer_block_bytes),
                row_bytes=run.length * layer_block_bytes,
                num_rows=num_layers,
            )

    @contextmanager
    def _on_stream(self, *, spin: bool = False) -> Iterator[None]:
        """Work given within is done when it is left."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield
        Mark.of(self._stream, spin=spin).wait()

    def _ids(self, block_ids: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.array(block_ids, np.int32)).to(self._device)  # ten times as fast as torch.tensor

    def _blocks(self, part: Tensor) -> Tensor:
        """[n, num_layers, num_kv_heads, 2, block_size, head_dim] of bytes."""
        num_layers, _, *rest = self._kv.shape
        return part.view(self._kv.dtype).view(-1, num_layers, *rest)


def run_starts(pairs: np.ndarray) -> np.ndarray:
    """Of `pairs` [2, n], sources and targets, the indices at which runs begin: both ids go up by one within them."""
    if not pairs.size:
        return np.empty(0, np.int64)
    return np.concatenate(([0], np.flatnonzero((np.diff(pairs) != 1).any(0)) + 1))


def runs_from(starts: np.ndarray, pairs: np.ndarray) -> list[Run]:
    lengths = np.diff(np.append(starts, pairs.shape[1]))
    return [Run(*run) for run in np.vstack((pairs[:, starts], lengths)).T.tolist()]


def _copy_rows(target: int, source: int, *, pitches: tuple[int, int], row_bytes: int, num_rows: int) -> None:
    """As `copy_rows_async`, on a CPU."""
    for row in range(num_rows):
        ctypes.memmove(target + row * pitches[0], source + row * pitches[1], row_bytes)


def _programs(hidden: bool) -> int | None:
    return HIDDEN_PROGRAMS if hidden else None
