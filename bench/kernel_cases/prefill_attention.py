"""Prompt-chunk attention at the shapes of Llama-3.1-8B and SmolLM2-135M, against the matrix units' rate."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...kernels.prefill_attention import Batch, Tile, launch_attention, prefill_attention, ref_prefill_attention
from ...kernels.vendor_attention import Run, cudnn_attention, gather_kv
from ..kernel_case import KernelCase

BLOCK_SIZE = 16
NUM_COPIES = 2
"""Of q, K and V, in turn. The work is bound by arithmetic: more would change little."""
TILES = [
    Tile(128, 128, 8, 3),
    Tile(128, 64, 8, 3),
    Tile(128, 64, 8, 4),
    Tile(64, 64, 4, 3),
    Tile(64, 32, 4, 3),
]


@dataclass(frozen=True)
class Shape:
    name: str
    runs: tuple[tuple[int, int], ...]
    """(tokens, prefix) of each."""
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    kv_dtype: torch.dtype = torch.bfloat16

    @property
    def num_pairs(self) -> int:
        """Of a query token and a key that it sees."""
        return sum(tokens * prefix + tokens * (tokens + 1) // 2 for tokens, prefix in self.runs)

    @property
    def num_flops(self) -> int:
        return 4 * self.head_dim * self.num_heads * self.num_pairs

    @property
    def num_bytes(self) -> int:
        num_tokens = sum(tokens for tokens, _ in self.runs)
        num_keys = sum(tokens + prefix for tokens, prefix in self.runs)
        kv_bytes = num_keys * self.num_kv_heads * 2 * self.kv_dtype.itemsize
        return (num_tokens * self.num_heads * 2 * 2 + kv_bytes) * self.head_dim


SHAPES = [
    Shape("Llama-8B, 8192 tokens, bf16", ((8192, 0),)),
    Shape("Llama-8B, 8192 after 8192, bf16", ((8192, 8192),)),
    Shape("Llama-8B, 8192 after 16384, bf16", ((8192, 16384),)),
    Shape("Llama-8B, 8192 after 24576, bf16", ((8192, 24576),)),
    Shape("Llama-8B, 2048 tokens, bf16", ((2048, 0),)),
    Shape("Llama-8B, 1024 tokens, bf16", ((1024, 0),)),
    Shape("Llama-8B, 512 after 15872, bf16", ((512, 15872),)),
    Shape("Llama-8B, runs of 1, 17, 300 and 2048, bf16", ((1, 1500), (17, 4000), (300, 700), (2048, 6001))),
    Shape("Llama-8B, 16 runs of 512, bf16", ((512, 0),) * 16),
    Shape("Llama-8B, 8192 after 8192, e4m3", ((8192, 8192),), kv_dtype=torch.float8_e4m3fn),
    Shape("SmolLM2-135M, 2048 tokens, bf16", ((2048, 0),), 9, 3, 64),
]


class Step:
    """Random tokens and KV, in shuffled blocks."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        counts = [math.ceil((tokens + prefix) / BLOCK_SIZE) for tokens, prefix in shape.runs]
        block_ids = torch.randperm(sum(counts), device=device).int().split(counts)
        tables = torch.nn.utils.rnn.pad_sequence(list(block_ids), batch_first=True)
        lengths = torch.tensor([tokens for tokens, _ in shape.runs], device=device)
        starts = torch.tensor([0] + [tokens for tokens, _ in shape.runs], device=device).cumsum(0)
        kv_shape = (sum(counts), shape.num_kv_heads, 2, BLOCK_SIZE, shape.head_dim)
        num_tokens = int(starts[-1])
        q = torch.randn(num_tokens, shape.num_heads, shape.head_dim, dtype=torch.bfloat16, device=device)
        self.batch = Batch(
            q=q,
            kv_layer=torch.randn(kv_shape, dtype=torch.bfloat16, device=device).to(shape.kv_dtype),
            block_tables=tables,
            rows=torch.arange(len(counts), device=device).repeat_interleave(lengths).int(),
            positions=torch.cat([torch.arange(p, p + n, device=device) for n, p in shape.runs]).int(),
            row_starts=starts.int(),
            scale=shape.head_dim**-0.5,
            window=None,
            k_scale=1.0,
            v_scale=1.0,
        )
        self.runs = [Run(int(start), *run) for start, run in zip(starts[:-1], shape.runs, strict=True)]
        self.out = torch.empty_like(q)

    def attend(self) -> Tensor:
        operands = {name: getattr(self.batch, name) for name in Batch.__slots__}
        return prefill_attention(
            **operands,
            max_row_tokens=max(run.num_tokens for run in self.runs),
            max_context=max(run.start + run.num_tokens for run in self.runs),
            runs=self.runs,
        )

    def launch(self, tile: Tile) -> None:
        launch_attention(self.batch, self.out, tile, range(len(self.runs)), range(len(self.batch.q)))

    def cudnn(self) -> Tensor:
        batch = self.batch
        return cudnn_attention(batch.q, batch.kv_layer, batch.block_tables, batch.rows, self.runs[0], batch.scale)

    def flash(self) -> Tensor:
        """FlashAttention-2 as PyTorch carries it: causal from the bottom right, so that no parts need merging."""
        batch, run = self.batch, self.runs[0]
        context = run.start + run.num_tokens
        keys, values = gather_kv(batch.kv_layer, batch.block_tables, batch.rows, run, context, dtype=batch.q.dtype)
        return torch.ops.aten._flash_attention_forward(
            batch.q[None], keys[None], values[None], None, None, run.num_tokens, context, 0.0, True, False,
            scale=batch.scale,
        )[0]  # fmt: skip


Calls = Sequence[Callable[[], object]]


def peers(shape: Shape, steps: Sequence[Step]) -> dict[str, Calls]:
    """Tiles of our kernel and, for a single run, libraries."""
    calls: dict[str, Calls] = {}
    for tile in TILES:
        name = f"{tile.block_m} rows × {tile.block_n} keys, {tile.num_warps} warps, {tile.num_stages} stages"
        calls[name] = [partial(step.launch, tile) for step in steps]
    if len(shape.runs) == 1:
        calls["cuDNN on gathered KV"] = [step.cudnn for step in steps]
        calls["FlashAttention-2 on gathered KV"] = [step.flash for step in steps]
    return calls


def check(step: Step) -> tuple[Tensor, Tensor]:
    return step.attend(), ref_prefill_attention(step.batch)


def cases(device: torch.device) -> Iterator[KernelCase]:
    torch.manual_seed(0)
    for shape in SHAPES:
        steps = [Step(shape, device) for _ in range(NUM_COPIES)]
        yield KernelCase(
            op="prefill_attention",
            shape=shape.name,
            runs=[step.attend for step in steps],
            num_bytes=shape.num_bytes,
            num_flops=shape.num_flops,
            peers=peers(shape, steps),
            check=partial(check, steps[0]),
            tolerance=6e-3,
        )
