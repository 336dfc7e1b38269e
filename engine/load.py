"""From a configuration and a place with weights to a running engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .config import ModelConfig
from .gguf_weights import GgufFile
from .kv_pool import KvPool, bytes_per_block
from .load_progress import LoadProgress
from .models.llama import Llama
from .models.registry import MODELS
from .parts import CpuParts, Parts
from .torch_engine import Sampler, TorchEngine
from .weights import DummyWeights, SafetensorsFolder, Weights, WeightSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FAST_BF16_FLAGS = frozenset(("amx_bf16", "avx512_bf16"))
CPU_INFO = Path("/proc/cpuinfo")


def load_engine(
    config: Mapping[str, Any],
    weights: Path | None,
    *,
    dtype: str,
    load_format: str,
    block_size: int,
    sampler: Sampler,
    num_blocks: int | None = None,
    kv_memory_bytes: int | None = None,
) -> TorchEngine:
    """`config` is a parsed config.json, `weights` a .gguf file or a folder with safetensors (None for `dummy`).

    `dtype` is "auto", "float32" or "bfloat16"; `load_format` "auto" or "dummy". The pool has `num_blocks` blocks, or
    as many as `kv_memory_bytes` hold. Raises ValueError, with a sentence, on what cannot be loaded.
    """
    sizes = ModelConfig.from_hf(config)
    resolved = DTYPES[resolve_dtype(dtype)]
    per_block = bytes_per_block(sizes.num_layers, block_size, sizes.num_kv_heads, sizes.head_dim, resolved)
    pool = KvPool(
        num_layers=sizes.num_layers,
        num_blocks=_num_blocks(num_blocks, kv_memory_bytes, per_block),
        block_size=block_size,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        dtype=resolved,
    )
    return TorchEngine(load_model(sizes, weights, resolved, load_format), pool, sampler)


@torch.inference_mode()
def load_model(
    config: ModelConfig,
    weights: Path | None,
    dtype: torch.dtype,
    load_format: str = "auto",
    *,
    parts: Parts | None = None,
    device: torch.device | str = "cpu",
) -> Llama:
    """Built of `parts`, the CPU's if none are given, with weights on `device`. Raises ValueError where the weights are
    not exactly those that the configuration describes."""
    family = MODELS[config.family]
    expected = family.weight_shapes(config)
    if load_format == "dummy":
        source: WeightSource = DummyWeights(expected, device=device)
    elif load_format != "auto":
        raise ValueError(f"load_format is {load_format!r}, not 'auto' or 'dummy'")
    else:
        source = _open(config, weights, str(device))
    taken = Weights(source, expected, dtype, device)
    taken.on_taken = LoadProgress(taken.num_bytes)
    return family(config, taken, parts or CpuParts())


def resolve_dtype(dtype: str, cpu_flags: frozenset[str] | None = None) -> str:
    """`auto` is bfloat16 where this CPU multiplies it in hardware, else float32."""
    if dtype == "auto":
        flags = _cpu_flags() if cpu_flags is None else cpu_flags
        return "bfloat16" if flags & FAST_BF16_FLAGS else "float32"
    if dtype not in DTYPES:
        raise ValueError(f"the dtype {dtype!r} is not supported (auto, {', '.join(DTYPES)} are)")
    return dtype


def _open(config: ModelConfig, weights: Path | None, device: str) -> WeightSource:
    if weights is None:
        raise ValueError("no weights given")
    if weights.suffix == ".gguf":
        return GgufFile(weights, config)
    return SafetensorsFolder(weights, ignore=("lm_head.weight",) if config.tie_embeddings else (), device=device)


def _num_blocks(num_blocks: int | None, kv_memory_bytes: int | None, per_block: int) -> int:
    if num_blocks is None:
        if kv_memory_bytes is None:
            raise ValueError("either num_blocks or kv_memory_bytes must be given")
        num_blocks = kv_memory_bytes // per_block
    if num_blocks < 1:
        raise ValueError(f"the KV cache has no room for one block of {per_block} bytes")
    return num_blocks


def _cpu_flags() -> frozenset[str]:
    if not CPU_INFO.exists():
        return frozenset()
    lines = CPU_INFO.read_text().splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
