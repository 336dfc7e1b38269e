"""Moving 2,048 and 32,768 tokens of Llama-3.1-8B with few programs and many, against the time to read and write each
byte once. A store to a peer goes to another pool of the same GPU."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ...kernels.move_blocks import CONFIG, MoveConfig, gather_blocks, ref_convert, scatter_blocks, store_blocks_to_peer
from ..kernel_case import KernelCase, Run

OP = "move_blocks"
LLAMA = (32, 8, 128)
"""Layers, KV heads, head_dim."""
SMOLLM2 = (30, 3, 64)
BLOCK_SIZE = 16
NUM_PROGRAMS = (8, 16, 32, 132)

CONFIGS = [
    MoveConfig(16384, 8, 4),
    MoveConfig(16384, 8, 6),
    MoveConfig(32768, 16, 3),
    MoveConfig(32768, 16, 6),
    MoveConfig(32768, 8, 4),
    MoveConfig(32768, 32, 4),
    MoveConfig(65536, 32, 3),
    MoveConfig(32768, 16, 1),
    MoveConfig(65536, 32, 1),
]
FEW_CONFIGS = [CONFIGS[3], CONFIGS[8]]


class Move:
    """Two sets of shuffled blocks of a pool, each with a buffer."""

    def __init__(
        self, device: torch.device, geometry: tuple[int, int, int], num_blocks: int, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        num_layers, num_kv_heads, head_dim = geometry
        block = (num_kv_heads, 2, BLOCK_SIZE, head_dim)
        self.pool = torch.randn(num_layers, 2 * num_blocks, *block, dtype=torch.bfloat16, device=device)
        self.ids = torch.randperm(2 * num_blocks, device=device, dtype=torch.int32).view(2, num_blocks)
        self.buffers = torch.empty(2, num_blocks, num_layers, *block, dtype=dtype, device=device)
        self.num_bytes = self.pool.nbytes // 2 + self.buffers.nbytes // 2

    def gather(self, num_programs: int, config: MoveConfig = CONFIG) -> list[Run]:
        return [partial(self._gather, place, num_programs, config) for place in range(2)]

    def scatter(self, num_programs: int) -> list[Run]:
        return [
            partial(scatter_blocks, buffer, self.pool, ids, num_programs=num_programs)
            for buffer, ids in zip(self.buffers, self.ids, strict=True)
        ]

    def check(self) -> tuple[Tensor, Tensor]:
        """Of every 16th block."""
        self._gather(0, 16, CONFIG)
        exact = self.pool[:, self.ids[0, ::16].long()].transpose(0, 1)
        return self.buffers[0, ::16], ref_convert(exact, torch.float32, 1.0, 1.0)

    def _gather(self, place: int, num_programs: int, config: MoveConfig) -> Tensor:
        return gather_blocks(self.pool, self.ids[place], self.buffers[place], num_programs=num_programs, config=config)


def cases(device: torch.device) -> Iterator[KernelCase]:
    yield from _gather_cases(device, 128, CONFIGS)
    yield from _gather_cases(device, 2048, [])
    yield from _scatter_cases(device)
    yield from _peer_cases(device)
    yield from _other_cases(device)


def _gather_cases(device: torch.device, num_blocks: int, configs: Sequence[MoveConfig]) -> Iterator[KernelCase]:
    move = Move(device, LLAMA, num_blocks)
    for num_programs in NUM_PROGRAMS:
        peers: dict[str, Sequence[Run]] = {_name(config): move.gather(num_programs, config) for config in configs}
        peers["one device copy"] = [partial(move.buffers[0].copy_, move.buffers[1])]
        yield _case(f"gather {num_blocks} blocks, {num_programs} programs", move, move.gather(num_programs), peers)


def _scatter_cases(device: torch.device) -> Iterator[KernelCase]:
    move = Move(device, LLAMA, 128)
    move.buffers.normal_()
    for num_programs in NUM_PROGRAMS:
        yield KernelCase(OP, f"scatter 128 blocks, {num_programs} programs", move.scatter(num_programs), move.num_bytes)


def _peer_cases(device: torch.device) -> Iterator[KernelCase]:
    move = Move(device, LLAMA, 128)
    peer = torch.empty_like(move.pool)

    def runs(num_programs: int, config: MoveConfig = CONFIG) -> list[Run]:
        return [
            partial(
                store_blocks_to_peer,
                move.pool,
                ids,
                peer.data_ptr(),
                ids,
                peer_shape=tuple(peer.shape),
                num_programs=num_programs,
                config=config,
            )
            for ids in move.ids
        ]

    def check() -> tuple[Tensor, Tensor]:
        for run in runs(16):
            run()
        return peer[:, ::16], move.pool[:, ::16].float()

    for num_programs in NUM_PROGRAMS:
        peers: dict[str, Sequence[Run]] = {_name(config): runs(num_programs, config) for config in FEW_CONFIGS}
        name = f"store 128 blocks to a peer, {num_programs} programs"
        yield KernelCase(OP, name, runs(num_programs), move.num_bytes, peers=peers, check=check)


def _other_cases(device: torch.device) -> Iterator[KernelCase]:
    small = Move(device, SMOLLM2, 256)
    for num_programs in (16, 132):
        yield _case(f"gather 256 blocks of SmolLM2, {num_programs} programs", small, small.gather(num_programs), {})
    narrow = Move(device, LLAMA, 128, torch.float8_e4m3fn)
    for num_programs in (16, 132):
        yield _case(f"gather 128 blocks into e4m3, {num_programs} programs", narrow, narrow.gather(num_programs), {})


def _case(name: str, move: Move, runs: Sequence[Run], peers: dict[str, Sequence[Run]]) -> KernelCase:
    tolerance = 4e-2 if move.buffers.dtype.itemsize == 1 else 1e-2
    return KernelCase(OP, name, runs, move.num_bytes, peers=peers, check=move.check, tolerance=tolerance)


def _name(config: MoveConfig) -> str:
    return f"{config.piece_bytes // 1024} KiB, {config.num_warps} warps, {config.num_stages} stages"
