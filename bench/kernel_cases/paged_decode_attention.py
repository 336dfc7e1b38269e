"""Decode attention at the shapes of Llama-3.1-8B and SmolLM2-135M, against the time to read the KV once.

It is launched as the engine launches it, programmatically where the GPU can. Runs follow one another, so each may ask
for its first KV while the one ahead ends; beside that stand runs that follow the rotation of their own layer's Q and K,
as in a model, and a kernel that reads the same KV by the same partition and makes nothing of it. Beside runs of tokens,
as drafts are verified in, stand their tokens as rows of their own, and their last tokens alone.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...kernels.decode_partition import (
    PART_FIELDS,
    ROW_FIELDS,
    ROW_OF_PART,
    DecodeConfig,
    DecodeWorkspace,
    decode_workspace,
    load_row,
    partition_decode,
)
from ...kernels.paged_decode_attention import paged_decode_attention, ref_paged_decode_attention
from ...kernels.rope_store import rope_store
from ..kernel_case import KernelCase, Run

BLOCK_SIZE = 16
ROTATED_BYTES = 200_000_000
MAX_LAYERS = 48

PROGRAMMATIC_CAPABILITY = (9, 0)

# By name; how many programs fit on a multiprocessor follows from 227 KB of shared memory and 64 K registers.
WIDE_CONFIGS = {
    "parts of 1 tile or more": DecodeConfig(64, 4, 3, 2, min_tiles=1),
    "parts of 3 tiles or more": DecodeConfig(64, 4, 3, 2, min_tiles=3),
    "tile 64, 2 warps, 3 stages, 2 per SM": DecodeConfig(64, 2, 3, 2, min_tiles=2),
    "tile 64, 2 warps, 3 stages, 3 per SM": DecodeConfig(64, 2, 3, 3, min_tiles=2),
    "tile 32, 2 warps, 4 stages, 4 per SM": DecodeConfig(32, 2, 4, 4, min_tiles=4),
    "tile 64, 4 warps, 4 stages, 2 per SM": DecodeConfig(64, 4, 4, 2, min_tiles=2),
}
# Half the bytes a token: of fp8, or of a small head.
NARROW_CONFIGS = {
    "tile 64, 2 warps, 4 stages, 3 per SM": DecodeConfig(64, 2, 4, 3, min_tiles=2),
    "tile 64, 4 warps, 4 stages, 2 per SM": DecodeConfig(64, 4, 4, 2, min_tiles=2),
}
# Of runs. The first two are the same kernel.
RUN_CONFIGS = {
    "parts of 1 tile or more": DecodeConfig(64, 4, 3, 2, min_tiles=1),
    "parts of 4 tiles or more": DecodeConfig(64, 4, 3, 2, min_tiles=4),
    "tile 64, 4 warps, 4 stages, 2 per SM": DecodeConfig(64, 4, 4, 2, min_tiles=2, max_queries=32),
    "programs of up to 32 queries": DecodeConfig(64, 4, 3, 2, min_tiles=2, max_queries=32),
}


@triton.jit
def _read_kernel(  # type: ignore[no-untyped-def]
    words,
    block_tables,
    row_records,
    part_records,
    out,
    table_stride,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Reads the KV that a program of decode attention reads, WORDS int32 a block and head."""
    kv_head, part = tl.program_id(0), tl.program_id(1)
    record = part_records + part * PART_FIELDS
    tile, part_end, b = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    row_start, row_end, table_row, context, _, _ = load_row(record + ROW_OF_PART)
    nth, word = tl.arange(0, TILE // BLOCK_SIZE), tl.arange(0, WORDS)
    read = tl.zeros([TILE // BLOCK_SIZE, WORDS], tl.int32)
    while tile < part_end:
        stop = tl.minimum(part_end, row_end)
        table = block_tables + table_row.to(tl.int64) * table_stride
        for step in tl.range(tile - row_start, stop - row_start, num_stages=STAGES):
            block_id = step * (TILE // BLOCK_SIZE) + nth
            mask = block_id * BLOCK_SIZE < context
            block = tl.load(table + block_id, mask=mask, other=0).to(tl.int64)
            start = words + (block * NUM_KV_HEADS + kv_head) * WORDS
            read ^= tl.load(start[:, None] + word[None, :], mask=mask[:, None], other=0)
        tile, b = stop, b + 1
        if tile < part_end:
            row_start, row_end, table_row, context, _, _ = load_row(row_records + b * ROW_FIELDS)
    tl.store(out + part * NUM_KV_HEADS + kv_head, tl.xor_sum(tl.xor_sum(read, 1), 0))


@dataclass(frozen=True)
class Shape:
    name: str
    contexts: Sequence[int]
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    kv_dtype: torch.dtype = torch.bfloat16
    run_length: int = 1

    @property
    def kv_bytes(self) -> int:
        return sum(self.contexts) * self.num_kv_heads * 2 * self.head_dim * self.kv_dtype.itemsize

    @property
    def num_flops(self) -> int:
        return 4 * sum(self.contexts) * self.num_heads * self.head_dim * self.run_length


LLAMA = [
    *(Shape(f"Llama-8B, batch {batch}, context 1088, bf16", [1088] * batch) for batch in (1, 8, 32, 64, 128, 256)),
    *(Shape(f"Llama-8B, batch {batch}, context 32768, bf16", [32768] * batch) for batch in (1, 8)),
    Shape("Llama-8B, one of 32768 among 63 of 200, bf16", [200] * 31 + [32768] + [200] * 32),
    Shape("Llama-8B, batch 64, context 1088, e4m3", [1088] * 64, kv_dtype=torch.float8_e4m3fn),
]
SMOLLM2 = [Shape(f"SmolLM2-135M, batch {batch}, context 1024, bf16", [1024] * batch, 9, 3, 64) for batch in (1, 64)]
RUNS = [
    *(
        Shape(f"Llama-8B, batch {batch}, context {context}, runs of 5, bf16", [context] * batch, run_length=5)
        for context in (1088, 32768)
        for batch in (1, 8, 32)
    ),
    Shape("Llama-8B, batch 8, context 1088, runs of 16, bf16", [1088] * 8, run_length=16),
]


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
        self.positions = torch.tensor(shape.contexts, dtype=torch.int32, device=device) - shape.run_length
        # Of runs, all first tokens come first.
        q = torch.randn(shape.run_length, batch, shape.num_heads, shape.head_dim, device=device, dtype=torch.bfloat16)
        self.q = q.transpose(0, 1) if shape.run_length > 1 else q[0]
        num_heads = shape.num_heads + 2 * shape.num_kv_heads
        self.qkv = torch.randn(batch, num_heads * shape.head_dim, device=device, dtype=torch.bfloat16)
        self.cos_sin = torch.rand(max(shape.contexts), 2, shape.head_dim // 2, device=device)
        self.pdl = torch.cuda.get_device_capability(device) >= PROGRAMMATIC_CAPABILITY
        self.rotated, self.out = torch.empty_like(self.q), torch.empty_like(self.q)
        self.scale = shape.head_dim**-0.5

    def workspace(self, config: DecodeConfig | None = None) -> DecodeWorkspace:
        shape = self.shape
        heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
        workspace = decode_workspace(
            len(self.rows), *heads, shape.kv_dtype, self.device, run_length=shape.run_length, config=config
        )
        self.partition(workspace)
        return workspace

    def partition(self, workspace: DecodeWorkspace) -> None:
        partition_decode(self.rows, self.positions, workspace=workspace, run_length=self.shape.run_length)

    def single(self) -> "Step":
        """With the last token of each run alone."""
        step = copy(self)
        step.shape = replace(self.shape, run_length=1)
        step.positions = self.positions + (self.shape.run_length - 1)
        step.q, step.out = self.q[:, -1], torch.empty_like(self.q[:, -1])
        return step

    def unrolled(self) -> "Step":
        """With each token of a run as a row of its own."""
        step, run_length = copy(self), self.shape.run_length
        step.shape = replace(self.shape, run_length=1)
        step.rows = self.rows.repeat(run_length)
        nth = torch.arange(run_length, dtype=torch.int32, device=self.device)
        step.positions = (nth[:, None] + self.positions).flatten()
        step.q = self.q.transpose(0, 1).flatten(0, 1)
        step.out = torch.empty_like(step.q)
        return step

    def attention(self, layer: Tensor, workspace: DecodeWorkspace, pdl: bool, q: Tensor | None = None) -> Tensor:
        inputs = (self.q if q is None else q, layer, self.tables, self.rows, self.positions)
        return paged_decode_attention(*inputs, scale=self.scale, workspace=workspace, out=self.out, pdl=pdl)

    def rotation(self, layer: Tensor) -> Tensor:
        inputs = (self.qkv, layer, self.tables, self.rows, self.positions, self.cos_sin)
        return rope_store(*inputs, num_heads=self.shape.num_heads, q_out=self.rotated, pdl=self.pdl)

    def runs(self, config: DecodeConfig | None = None, pdl: bool | None = None) -> list[Run]:
        workspace, pdl = self.workspace(config), self.pdl if pdl is None else pdl

        def run(layer: Tensor) -> Run:
            return lambda: self.attention(layer, workspace, pdl)

        return [run(layer) for layer in self.layers]

    def runs_after_rotation(self, config: DecodeConfig | None = None) -> list[Run]:
        workspace = self.workspace(config)

        def run(layer: Tensor) -> Run:
            return lambda: self.attention(layer, workspace, self.pdl, self.rotation(layer))

        return [run(layer) for layer in self.layers]

    def rotations(self) -> list[Run]:
        def run(layer: Tensor) -> Run:
            return lambda: self.rotation(layer)

        return [run(layer) for layer in self.layers]

    def reads(self) -> list[Run]:
        """The same bytes by the same programs, without a use."""
        workspace, shape = self.workspace(), self.shape
        read = torch.empty(workspace.num_parts * shape.num_kv_heads, dtype=torch.int32, device=self.device)

        def run(words: Tensor) -> Run:
            return lambda: _read_kernel[(shape.num_kv_heads, workspace.num_parts)](
                words,
                self.tables,
                workspace.row_records,
                workspace.part_records,
                read,
                self.tables.stride(0),
                NUM_KV_HEADS=shape.num_kv_heads,
                BLOCK_SIZE=BLOCK_SIZE,
                WORDS=words.shape[-1],
                TILE=workspace.config.tile,
                STAGES=workspace.config.num_stages,
                num_warps=workspace.config.num_warps,
            )

        return [run(layer.flatten(2).view(torch.int32)) for layer in self.layers]

    def check(self) -> tuple[Tensor, Tensor]:
        inputs = (self.layers[0], self.tables, self.rows, self.positions)
        out = self.attention(self.layers[0], self.workspace(), self.pdl)
        return out.clone(), ref_paged_decode_attention(self.q.float(), *inputs, scale=self.scale)


def cases(device: torch.device) -> Iterator[KernelCase]:
    for shape in LLAMA:
        configs = WIDE_CONFIGS if shape.kv_dtype == torch.bfloat16 else NARROW_CONFIGS
        yield _case(Step(shape, device), configs)
    for shape in SMOLLM2:
        yield _case(Step(shape, device), NARROW_CONFIGS)
    for shape in RUNS:
        yield _run_case(Step(shape, device))
    for batch in (1, 64, 256):
        yield _partition_case(Step(Shape("", [1088] * batch), device))


def _case(step: Step, configs: dict[str, DecodeConfig]) -> KernelCase:
    shape = step.shape
    peers: dict[str, Sequence[Run]] = {name: step.runs(config) for name, config in configs.items()}
    peers["an ordinary launch"] = step.runs(pdl=False)
    peers["KV read only, an ordinary launch"] = step.reads()
    if shape.kv_dtype == torch.bfloat16:
        peers["rope_store alone"] = step.rotations()
        peers["rope_store and this"] = step.runs_after_rotation()
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


def _run_case(step: Step) -> KernelCase:
    shape = step.shape
    peers: dict[str, Sequence[Run]] = {name: step.runs(config) for name, config in RUN_CONFIGS.items()}
    peers["each token a row"] = step.unrolled().runs()
    peers["one token a run"] = step.single().runs()
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
