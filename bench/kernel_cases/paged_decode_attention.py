"""Decode attention at the shapes of Llama-3.1-8B and SmolLM2-135M, against the time to read the KV once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels.decode_partition import DecodeConfig, DecodeWorkspace, decode_config, decode_workspace, partition_decode
from ...kernels.paged_decode_attention import paged_decode_attention, ref_paged_decode_attention
from ..kernel_case import KernelCase, Run

BLOCK_SIZE = 16
ROTATED_BYTES = 200_000_000
MAX_LAYERS = 48

# By name; how many programs fit on a multiprocessor follows from 227 KB of shared memory and 64 K registers.
WIDE_CONFIGS = {
    "tile 64, 4 warps, 3 stages, 3 per SM": DecodeConfig(tile=64, num_warps=4, num_stages=3, programs_per_sm=3),
    "tile 64, 4 warps, 4 stages, 2 per SM": DecodeConfig(tile=64, num_warps=4, num_stages=4, programs_per_sm=2),
    "tile 64, 2 warps, 3 stages, 3 per SM": DecodeConfig(tile=64, num_warps=2, num_stages=3, programs_per_sm=3),
    "tile 32, 4 warps, 4 stages, 4 per SM": DecodeConfig(tile=32, num_warps=4, num_stages=4, programs_per_sm=4),
    "tile 128, 8 warps, 3 stages, 1 per SM": DecodeConfig(tile=128, num_warps=8, num_stages=3, programs_per_sm=1),
}
# Half the bytes a token: of fp8, or of a small head.
NARROW_CONFIGS = {
    "tile 64, 4 warps, 3 stages, 3 per SM": DecodeConfig(tile=64, num_warps=4, num_stages=3, programs_per_sm=3),
    "tile 64, 4 warps, 4 stages, 3 per SM": DecodeConfig(tile=64, num_warps=4, num_stages=4, programs_per_sm=3),
    "tile 128, 4 warps, 4 stages, 2 per SM": DecodeConfig(tile=128, num_warps=4, num_stages=4, programs_per_sm=2),
}


@dataclass(frozen=True)
class Shape:
    name: str
    contexts: Sequence[int]
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    kv_dtype: torch.dtype = torch.bfloat16

    @property
    def kv_bytes(self) -> int:
        return sum(self.contexts) * self.num_kv_heads * 2 * self.head_dim * self.kv_dtype.itemsize

    @property
    def num_flops(self) -> int:
        return 4 * sum(self.contexts) * self.num_heads * self.head_dim


LLAMA = [
    *(Shape(f"Llama-8B, batch {batch}, context 1088, bf16", [1088] * batch) for batch in (1, 8, 32, 64, 128, 256)),
    *(Shape(f"Llama-8B, batch {batch}, context 32768, bf16", [32768] * batch) for batch in (1, 8)),
    Shape("Llama-8B, one of 32768 among 63 of 200, bf16", [200] * 31 + [32768] + [200] * 32),
    Shape("Llama-8B, batch 64, context 1088, e4m3", [1088] * 64, kv_dtype=torch.float8_e4m3fn),
]
SMOLLM2 = [Shape(f"SmolLM2-135M, batch {batch}, context 1024, bf16", [1024] * batch, 9, 3, 64) for batch in (1, 64)]


class Step:
    """Random KV of as many layers as the caches do not hold, in shuffled blocks."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device, batch = shape, device, len(shape.contexts)
        counts = [-(-context // BLOCK_SIZE) for context in shape.contexts]
        num_layers = min(MAX_LAYERS, -(-ROTATED_BYTES // shape.kv_bytes))
        layer = (sum(counts), shape.num_kv_heads, 2, BLOCK_SIZE, shape.head_dim)
        self.layers = [
            torch.randn(layer, device=device, dtype=torch.bfloat16).to(shape.kv_dtype) for _ in range(num_layers)
        ]
        self.tables = torch.zeros(batch, max(counts), dtype=torch.int32, device=device)
        blocks = torch.randperm(sum(counts), device=device).int()
        for row, own in enumerate(blocks.split(counts)):
            self.tables[row, : len(own)] = own
        self.rows = torch.arange(batch, dtype=torch.int32, device=device)
        self.positions = torch.tensor(shape.contexts, dtype=torch.int32, device=device) - 1
        self.q = torch.randn(batch, shape.num_heads, shape.head_dim, device=device, dtype=torch.bfloat16)
        self.out = torch.empty_like(self.q)
        self.scale = shape.head_dim**-0.5

    def workspace(self, config: DecodeConfig | None = None) -> DecodeWorkspace:
        shape = self.shape
        heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
        workspace = decode_workspace(len(shape.contexts), *heads, shape.kv_dtype, self.device, config=config)
        self.partition(workspace)
        return workspace

    def partition(self, workspace: DecodeWorkspace) -> None:
        partition_decode(self.rows, self.positions, workspace=workspace)

    def attention(self, layer: Tensor, workspace: DecodeWorkspace, pdl: bool = False) -> Tensor:
        inputs = (self.q, layer, self.tables, self.rows, self.positions)
        return paged_decode_attention(*inputs, scale=self.scale, workspace=workspace, out=self.out, pdl=pdl)

    def runs(self, config: DecodeConfig | None = None, pdl: bool = False) -> list[Run]:
        workspace = self.workspace(config)
        return [self._run(layer, workspace, pdl) for layer in self.layers]

    def _run(self, layer: Tensor, workspace: DecodeWorkspace, pdl: bool) -> Run:
        return lambda: self.attention(layer, workspace, pdl)

    def sums(self) -> list[Run]:
        """The vendor's reading of the same bytes."""
        total = torch.empty((), dtype=torch.int64, device=self.device)

        def run(words: Tensor) -> Run:
            return lambda: torch.sum(words, dim=0, out=total)

        return [run(layer.flatten().view(torch.int32)) for layer in self.layers]

    def check(self) -> tuple[Tensor, Tensor]:
        inputs = (self.layers[0], self.tables, self.rows, self.positions)
        out = self.attention(self.layers[0], self.workspace())
        return out.clone(), ref_paged_decode_attention(self.q.float(), *inputs, scale=self.scale)


def cases(device: torch.device) -> Iterator[KernelCase]:
    for shape in LLAMA:
        configs = WIDE_CONFIGS if shape.kv_dtype == torch.bfloat16 else NARROW_CONFIGS
        yield _case(Step(shape, device), configs)
    for shape in SMOLLM2:
        yield _case(Step(shape, device), NARROW_CONFIGS)
    for batch in (1, 64, 256):
        yield _partition_case(Step(Shape("", [1088] * batch), device))


def _case(step: Step, configs: dict[str, DecodeConfig]) -> KernelCase:
    shape = step.shape
    default = decode_config(shape.head_dim, shape.kv_dtype)
    peers: dict[str, Sequence[Run]] = {name: step.runs(config) for name, config in configs.items()}
    peers["two tiles a part"] = step.runs(replace(default, min_tiles=2))
    peers["three waves of programs"] = step.runs(replace(default, programs_per_sm=3 * default.programs_per_sm))
    peers["programmatic launch"] = step.runs(pdl=True)
    peers["torch.sum of the KV"] = step.sums()
    return KernelCase(
        op="paged_decode_attention",
        shape=shape.name,
        runs=step.runs(),
        num_bytes=shape.kv_bytes,
        num_flops=shape.num_flops,
        peers=peers,
        check=step.check,
        tolerance=4e-3,
    )


def _partition_case(step: Step) -> KernelCase:
    workspace = step.workspace()
    return KernelCase(
        op="decode_partition",
        shape=f"batch {len(step.rows)}",
        runs=[lambda: step.partition(workspace)],
        num_bytes=sum(tensor.nbytes for tensor in (step.rows, step.positions)),
    )
