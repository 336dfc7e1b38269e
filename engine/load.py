"""From a configuration and a place with weights to a running engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .config import ModelConfig
from .draft_model import DraftModel
from .eagle.cache import EagleCache
from .eagle.config import EagleConfig
from .eagle.follower import HeadFollower
from .eagle.load import load_eagle
from .eagle.proposer import EagleProposer
from .gguf_weights import GgufFile
from .guesses import Proposer
from .kv_pool import KvPool, bytes_per_block
from .load_progress import LoadProgress
from .models.llama import Llama
from .models.registry import MODELS
from .parts import CpuParts, Parts
from .sampler import GuessingSampler
from .speculation_config import SpeculationConfig
from .torch_engine import TorchEngine
from .weights import Bare, DummyWeights, SafetensorsFolder, Weights, WeightSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FAST_BF16_FLAGS = frozenset(("amx_bf16", "avx512_bf16"))
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model to load."""

    config: Mapping[str, Any]
    """A parsed config.json."""
    weights: Path | None
    """A .gguf file or a folder with safetensors; None for `dummy`."""


def load_engine(
    config: Mapping[str, Any],
    weights: Path | None,
    *,
    dtype: str,
    load_format: str,
    block_size: int,
    sampler: GuessingSampler,
    num_blocks: int | None = None,
    kv_memory_bytes: int | None = None,
    speculation: SpeculationConfig | None = None,
    draft: Checkpoint | None = None,
    model: Llama | None = None,
) -> TorchEngine:
    """`config` is a parsed config.json, `weights` a .gguf file or a folder with safetensors (None for `dummy`).

    `dtype` is "auto", "float32" or "bfloat16"; `load_format` "auto" or "dummy". The pool has `num_blocks` blocks, or
    as many as `kv_memory_bytes` hold. `speculation` says what guesses in the engine, if anything does, `draft` is its
    smaller model; of eagle it names the head's folder, and what the head keeps is a part of every block. `model` is one
    that `load_model` has made of the same: engines of a process may share it, as none writes to it. Raises ValueError,
    with a sentence, on what cannot be loaded.
    """
    sizes = ModelConfig.from_hf(config)
    resolved = DTYPES[resolve_dtype(dtype)]
    speculation = speculation or SpeculationConfig()
    per_block = bytes_per_block(sizes.num_layers, block_size, sizes.num_kv_heads, sizes.head_dim, resolved)
    if speculation.method == "eagle":
        head = EagleConfig.from_folder(_head_folder(speculation), sizes)
        per_block += head.cache_elements(block_size) * resolved.itemsize
    pool = _pool(sizes, _num_blocks(num_blocks, kv_memory_bytes, per_block), block_size, resolved)
    model = model or load_model(sizes, weights, resolved, load_format)
    proposer: Proposer | None = None
    follower: HeadFollower | None = None
    if speculation.method == "first-layers":
        assert speculation.num_layers is not None
        proposer = DraftModel(model.first_layers(speculation.num_layers), pool, sampler, shares_kv=True)
    elif speculation.method == "draft":
        assert draft is not None
        proposer = _draft_model(draft, load_format, sizes, pool, resolved, sampler)
    elif speculation.method == "eagle":
        source = open_source(sizes, weights, load_format, "cpu")
        follower = _follower(_head_folder(speculation), model, source, pool)
        proposer = EagleProposer(follower, sampler)
    return TorchEngine(model, pool, sampler, proposer, follower)


def _head_folder(speculation: SpeculationConfig) -> Path:
    assert speculation.model is not None
    return Path(speculation.model)


def _follower(folder: Path, target: Llama, source: WeightSource, pool: KvPool) -> HeadFollower:
    head = load_eagle(folder, target, CpuParts(), target.dtype, target_weights=source)
    cache = EagleCache(head.config, pool.num_blocks, pool.block_size, target.dtype)
    return HeadFollower(head, cache, target.config.num_layers)


def _draft_model(
    draft: Checkpoint, load_format: str, target: ModelConfig, pool: KvPool, dtype: torch.dtype, sampler: GuessingSampler
) -> DraftModel:
    sizes = ModelConfig.from_hf(draft.config)
    if sizes.vocab_size != target.vocab_size:
        raise ValueError(f"the draft model has {sizes.vocab_size} tokens, the model {target.vocab_size}")
    model = load_model(sizes, draft.weights, dtype, load_format)
    return DraftModel(model, _pool(sizes, pool.num_blocks, pool.block_size, dtype), sampler, shares_kv=False)


def _pool(sizes: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype) -> KvPool:
    return KvPool(
        num_layers=sizes.num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        dtype=dtype,
    )


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
    taken = Weights(open_source(config, weights, load_format, device), expected, dtype, device)
    taken.on_taken = LoadProgress(taken.num_bytes)
    return family(config, taken, parts or CpuParts())


def open_source(
    config: ModelConfig, weights: Path | None, load_format: str, device: torch.device | str
) -> WeightSource:
    """A checkpoint's tensors, by Hugging Face's names. Raises ValueError if there is none."""
    if load_format == "dummy":
        return DummyWeights(MODELS[config.family].weight_shapes(config), device=device)
    if load_format != "auto":
        raise ValueError(f"load_format is {load_format!r}, not 'auto' or 'dummy'")
    return _open(config, weights, str(device))


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
    source = SafetensorsFolder(weights, ignore=("lm_head.weight",) if config.tie_embeddings else (), device=device)
    return Bare(source) if Bare.is_bare(source) else source


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
