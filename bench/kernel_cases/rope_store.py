"""Rotation and storing at the shapes of Llama-3.1-8B and SmolLM2-135M, against the time to read and write each number
once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...kernels.rope_store import RopeConfig, ref_rope_store, rope_store
from ..kernel_case import KernelCase, Run

ROTATED_BYTES = 200_000_000
MAX_SETS = 32
"""Few tokens are in the L2 cache when a model's step gets to them, too."""
BLOCK_SIZE, MAX_POSITIONS = 16, 8192

FEW_TOKENS = (RopeConfig(4, 1), RopeConfig(8, 2), RopeConfig(16, 4), RopeConfig(64, 8))
MANY_TOKENS = (RopeConfig(8, 2), RopeConfig(16, 4), RopeConfig(32, 8), RopeConfig(32, 4), RopeConfig(64, 8))


@dataclass(frozen=True)
class Shape:
    name: str
    num_tokens: int
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    kv_dtype: torch.dtype = torch.bfloat16
    configs: Sequence[RopeConfig] = FEW_TOKENS
    norms: bool = False

    @property
    def num_bytes(self) -> int:
        q, kv = self.num_heads * self.head_dim, 2 * self.num_kv_heads * self.head_dim
        return self.num_tokens * ((q + kv) * 2 + q * 2 + kv * self.kv_dtype.itemsize + self.head_dim * 4)


SHAPES = [
    Shape("Llama-8B, 1 token, bf16", 1),
    Shape("Llama-8B, 64 tokens, bf16", 64),
    Shape("Llama-8B, 256 tokens, bf16", 256, configs=MANY_TOKENS),
    Shape("Llama-8B, 8192 tokens, bf16", 8192, configs=MANY_TOKENS),
    Shape("Llama-8B, 8192 tokens, e4m3", 8192, kv_dtype=torch.float8_e4m3fn, configs=MANY_TOKENS[1:3]),
    Shape("Qwen3's head norms, 8192 tokens, bf16", 8192, configs=MANY_TOKENS[1:3], norms=True),
    Shape("SmolLM2-135M, 1 token, bf16", 1, 9, 3, 64, configs=(RopeConfig(8, 1), RopeConfig(16, 2))),
]


class Tokens:
    """One set of memory: a row's tokens, in shuffled blocks."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        num_blocks = shape.num_tokens // BLOCK_SIZE + 1
        width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        pool_shape = (num_blocks, shape.num_kv_heads, 2, BLOCK_SIZE, shape.head_dim)
        angle = torch.rand(MAX_POSITIONS, shape.head_dim // 2, device=device) * 6
        self.qkv = torch.randn(shape.num_tokens, width, dtype=torch.bfloat16, device=device)
        self.pool = torch.zeros(pool_shape, device=device).to(shape.kv_dtype)
        self.table = torch.randperm(num_blocks, device=device, dtype=torch.int32)[None]
        self.rows = torch.zeros(shape.num_tokens, dtype=torch.int32, device=device)
        self.positions = torch.arange(shape.num_tokens, dtype=torch.int32, device=device)
        self.cos_sin = torch.stack((angle.cos(), angle.sin()), dim=1)
        self.q_out = torch.empty(shape.num_tokens, shape.num_heads, shape.head_dim, dtype=torch.bfloat16, device=device)
        self.norm = torch.rand(shape.head_dim, dtype=torch.bfloat16, device=device) if shape.norms else None
        self.num_heads = shape.num_heads

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.qkv, self.pool, self.table, self.rows, self.positions, self.cos_sin

    def run(self, *, pdl: bool = False, config: RopeConfig | None = None) -> Tensor:
        return rope_store(
            *self.inputs,
            num_heads=self.num_heads,
            q_norm=self.norm,
            k_norm=self.norm,
            q_out=self.q_out,
            pdl=pdl,
            config=config,
        )

    def check(self) -> tuple[Tensor, Tensor]:
        """Q and the pool; the reference's pool is fp32."""
        exact_pool = torch.zeros_like(self.pool, dtype=torch.float32)
        metadata = (self.table, self.rows, self.positions, self.cos_sin)
        exact_q = ref_rope_store(self.qkv.float(), exact_pool, *metadata, self.num_heads, self.norm, self.norm)
        out = torch.cat((self.run().float().flatten(), self.pool.float().flatten()))
        return out, torch.cat((exact_q.flatten(), exact_pool.flatten()))


def cases(device: torch.device) -> Iterator[KernelCase]:
    for shape in SHAPES:
        yield _case(shape, device)


def _case(shape: Shape, device: torch.device) -> KernelCase:
    sets = [Tokens(shape, device) for _ in range(min(ROTATED_BYTES // shape.num_bytes + 2, MAX_SETS))]
    peers: dict[str, Sequence[Run]] = {"pdl": [partial(tokens.run, pdl=True) for tokens in sets]}
    for config in shape.configs:
        name = f"{config.heads} heads, {config.num_warps} warps"
        peers[name] = [partial(tokens.run, config=config) for tokens in sets]
    tolerance = 4e-2 if shape.kv_dtype.itemsize == 1 else 1e-2
    runs = [tokens.run for tokens in sets]
    return KernelCase(
        "rope_store", shape.name, runs, shape.num_bytes, peers=peers, check=sets[0].check, tolerance=tolerance
    )
