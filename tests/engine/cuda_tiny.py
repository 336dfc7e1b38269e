"""The GPU's engine over two-layer random models: on a GPU, or on the CPU with the kernels' references."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from isthmus.engine.config import ModelConfig
from isthmus.engine.cuda.engine import CudaEngine, Sizes
from isthmus.engine.cuda.model_proposer import Draft
from isthmus.engine.cuda.parts import CudaParts
from isthmus.engine.cuda.pool import CudaKvPool
from isthmus.engine.cuda.pools import PoolLayout, Pools
from isthmus.engine.cuda.runtime import CudaRuntime, HostRuntime, Runtime
from isthmus.engine.cuda.step_sizes import Ladder
from isthmus.engine.eagle.head import EagleHead
from isthmus.engine.eagle.load import load_eagle
from isthmus.engine.kv_pool import bytes_per_block
from isthmus.engine.load import Checkpoint, load_model, open_source
from isthmus.engine.models.llama import Llama
from isthmus.engine.sampler import Sampler
from isthmus.tests.engine.tiny import BLOCK_SIZE, NUM_BLOCKS

LADDER = Ladder(
    decode=(1, 2, 4, 8),
    single=(0, 4),
    chunk_tokens=(8, 16, 32, 48),
    drafted=(1, 4, 8),
    drafts=(2, 4),
    masked=(1, 4, 8),
)
MAX_DRAFTS, MAX_SEQS = 4, 8


def runtime_of(device: str) -> Runtime:
    return CudaRuntime(0) if device == "cuda" else HostRuntime()


def cuda_engine(
    config: Mapping[str, Any],
    weights: Path | None,
    device: str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    draws: bool = True,
    captured: bool = True,
    pdl: bool = False,
    sampler: Sampler | None = None,
    draft: Checkpoint | int | None = None,
    head: Path | None = None,
    num_blocks: int = NUM_BLOCKS,
    max_num_seqs: int = MAX_SEQS,
) -> CudaEngine:
    """`draft`: a model that guesses, or how many of the first layers do; `head`: folder of an EAGLE head."""
    runtime, sizes = runtime_of(device), ModelConfig.from_hf(config)
    load_format = "dummy" if weights is None else "auto"
    model = load_model(sizes, weights, dtype, load_format, parts=CudaParts(pdl=pdl), device=runtime.device)
    guessing = None
    if isinstance(draft, int):
        guessing = Draft(model.first_layers(draft), None)
    elif draft is not None:
        small = ModelConfig.from_hf(draft.config)
        other = load_model(small, draft.weights, dtype, parts=CudaParts(pdl=pdl), device=runtime.device)
        guessing = Draft(other, pool_for(small, runtime, dtype, num_blocks))
    following = None
    if head is not None:
        source = open_source(sizes, weights, load_format, runtime.device)
        following = load_eagle(head, model, CudaParts(pdl=pdl), dtype, target_weights=source)
    options: dict[str, Any] = {"draws": draws, "pdl": pdl, "sampler": sampler, "draft": guessing, "head": following}
    sizes_of = {"num_blocks": num_blocks, "max_num_seqs": max_num_seqs}
    engine = engine_around(model, runtime, kv_dtype or dtype, **sizes_of, **options)
    if captured:
        engine.capture(LADDER if draws else replace(LADDER, decode=(), single=(0,), drafted=()))
    return engine


def engine_around(
    model: Llama,
    runtime: Runtime,
    kv_dtype: torch.dtype,
    *,
    num_blocks: int = NUM_BLOCKS,
    block_size: int = BLOCK_SIZE,
    max_num_batched_tokens: int = 256,
    max_num_seqs: int = MAX_SEQS,
    draws: bool = True,
    pdl: bool = False,
    sampler: Sampler | None = None,
    draft: Draft | None = None,
    head: EagleHead | None = None,
) -> CudaEngine:
    """Its pool holds only NaN: whatever reads a slot that no token was stored in shows."""
    pools = Pools.plain(pool_for(model.config, runtime, kv_dtype, num_blocks, block_size))
    if head is not None:
        layouts = [PoolLayout.of(one, block_size, kv_dtype) for one in (model.config, head.layer_config)]
        num_bytes = num_blocks * sum(layout.bytes_per_block for layout in layouts)
        memory = torch.full((num_bytes,), 0xFF, dtype=torch.uint8, device=runtime.device)
        pools = Pools.headed(runtime, memory, num_blocks, model=layouts[0], head=layouts[1])
    sizes = Sizes(max_num_seqs, max_num_batched_tokens, num_blocks * block_size, MAX_DRAFTS if draws else 0)
    return CudaEngine(model, pools, runtime, sizes, draws=draws, pdl=pdl, sampler=sampler, draft=draft, head=head)


def pool_for(
    config: ModelConfig,
    runtime: Runtime,
    kv_dtype: torch.dtype,
    num_blocks: int = NUM_BLOCKS,
    block_size: int = BLOCK_SIZE,
) -> CudaKvPool:
    shape: dict[str, Any] = {
        "num_layers": config.num_layers,
        "block_size": block_size,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "dtype": kv_dtype,
    }
    memory = torch.empty(num_blocks * bytes_per_block(**shape), dtype=torch.uint8, device=runtime.device)
    pool = CudaKvPool(runtime, memory, num_blocks=num_blocks, **shape)
    pool.kv.view(torch.uint8).fill_(0xFF)  # NaN in every floating type
    return pool
