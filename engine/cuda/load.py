"""From a configuration and a place with weights to an engine on a GPU, with all the KV its memory has room for."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...text.phrases import Phrases
from ..config import ModelConfig
from ..eagle.head import EagleHead
from ..eagle.load import load_eagle
from ..load import Checkpoint, load_model, open_source
from ..models.llama import Llama
from ..plan import Draw, Plan, Row, SequenceSeed
from ..sampler import Sampler
from ..speculation_config import SpeculationConfig
from .device_memory import allocate
from .engine import CudaEngine, Sizes
from .memory import Usage, kv_bytes, peak_bytes
from .model_proposer import Draft
from .parts import CudaParts
from .pools import PoolLayout, Pools
from .runtime import CudaRuntime, Runtime
from .step_sizes import Ladder, make_ladder

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
PDL_CAPABILITY = (9, 0)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one worker. `num_blocks` and `kv_memory_bytes` go before what is left of the utilised share."""

    utilization: float = 0.9
    share: float = 1.0
    """Part of the utilised memory that is this worker's: less than 1 where workers share a GPU."""
    num_blocks: int | None = None
    kv_memory_bytes: int | None = None


def load_cuda_engine(
    config: Mapping[str, Any],
    weights: Path | None,
    *,
    device_index: int,
    dtype: str,
    load_format: str,
    block_size: int,
    kv_cache_dtype: str,
    memory: Memory,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int | None,
    enforce_eager: bool = False,
    draws: bool = True,
    phrases: Phrases | None = None,
    sampler: Sampler | None = None,
    speculation: SpeculationConfig | None = None,
    draft: Checkpoint | None = None,
) -> tuple[CudaEngine, int]:
    """The engine, and the longest sequence it holds, in tokens: `max_model_len`, or what the model and the pool allow.

    `config` is a parsed config.json, `weights` a .gguf file or a folder with safetensors (None for the load format
    `dummy`). `dtype` is "auto" (the checkpoint's) or a name of torch's; `kv_cache_dtype` "auto" (the model's),
    "fp8_e4m3" or "fp8_e5m2". `draws`, `phrases` and `sampler`: see `CudaEngine`; `speculation` and `draft`: see
    `load_engine`; workers that do not draw have their heads, too. Raises ValueError, with a sentence, on what cannot be
    loaded.
    """
    sizes, start = ModelConfig.from_hf(config), time.monotonic()
    if sizes.head_dim % 16 or sizes.head_dim > 256:
        raise ValueError(
            f"a head dimension of {sizes.head_dim} is not supported on GPUs (multiples of 16 up to 256 are)"
        )
    runtime = CudaRuntime(device_index)
    torch.backends.cuda.preferred_blas_library("cublaslt")  # 32 to 128 rows: up to 0.2 ms a step faster, 8 as fast
    model_dtype = DTYPES[resolve_gpu_dtype(dtype, config)]
    if model_dtype == torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = False
    pdl = torch.cuda.get_device_capability(device_index) >= PDL_CAPABILITY
    model = load_model(sizes, weights, model_dtype, load_format, parts=CudaParts(pdl=pdl), device=runtime.device)
    log.info("%.1f GB of weights in %.1f s", torch.cuda.memory_allocated() / 1e9, time.monotonic() - start)
    kv_dtype = model_dtype if kv_cache_dtype == "auto" else KV_DTYPES[kv_cache_dtype]
    speculation = speculation or SpeculationConfig()
    guesser = _guesser(model, speculation, draft, model_dtype, load_format, pdl, runtime) if draws else None
    head: EagleHead | None = None
    if speculation.method == "eagle":
        assert speculation.model is not None
        source = open_source(sizes, weights, load_format, runtime.device)
        parts = CudaParts(pdl=pdl)
        head = load_eagle(Path(speculation.model), model, parts, model_dtype, target_weights=source)
    make = _Maker(model, runtime, kv_dtype, block_size, draws, pdl, phrases, sampler, guesser, head)
    longest = sizes.max_position_embeddings if max_model_len is None else max_model_len
    max_drafts = 0 if speculation.method == "off" or not draws else speculation.num_tokens
    step = Sizes(max_num_seqs, max_num_batched_tokens, longest, max_drafts)
    num_blocks = memory.num_blocks or _num_blocks(make, step, memory, enforce_eager)
    longest = _longest(max_model_len, longest, num_blocks * block_size)
    if memory.num_blocks is None:
        num_blocks = min(num_blocks, max(max_num_seqs, 2) * -(-longest // block_size))
    engine = make.engine(replace(step, max_model_len=longest), num_blocks, plain=True)
    if not enforce_eager:
        start, ladder = time.monotonic(), make.ladder(step)
        engine.capture(ladder)
        log.info("captured %d sizes of steps in %.1f s", len(ladder.sizes), time.monotonic() - start)
    return engine, longest


def resolve_gpu_dtype(dtype: str, config: Mapping[str, Any]) -> str:
    """`auto` is the checkpoint's type if that has 16 bits, else bfloat16."""
    if dtype == "auto":
        given = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
        return given if given in ("float16", "bfloat16") else "bfloat16"
    if dtype not in DTYPES:
        raise ValueError(f"the dtype {dtype!r} is not supported (auto, {', '.join(DTYPES)} are)")
    return dtype


@dataclass(frozen=True, slots=True)
class _Maker:
    model: Llama
    runtime: Runtime
    kv_dtype: torch.dtype
    block_size: int
    draws: bool
    pdl: bool
    phrases: Phrases | None
    sampler: Sampler | None
    guesser: "Guesser | None" = None
    head: EagleHead | None = None

    @property
    def bytes_per_block(self) -> int:
        """Of all pools."""
        num_bytes = self._model_layout.bytes_per_block
        if self.head is not None:
            num_bytes += self._head_layout.bytes_per_block + self._hidden_bytes
        if self.guesser is not None and not self.guesser.shares_kv:
            num_bytes += self._layout(self.guesser.model.config).bytes_per_block
        return num_bytes

    @property
    def _hidden_bytes(self) -> int:
        """Of a block: see HeadCache."""
        assert self.head is not None
        return self.head.layer_config.hidden_size * self.head.dtype.itemsize + torch.int32.itemsize

    @property
    def _model_layout(self) -> PoolLayout:
        return self._layout(self.model.config)

    @property
    def _head_layout(self) -> PoolLayout:
        assert self.head is not None
        return self._layout(self.head.layer_config)

    def _layout(self, config: ModelConfig) -> PoolLayout:
        return PoolLayout.of(config, self.block_size, self.kv_dtype)

    def ladder(self, sizes: Sizes) -> Ladder:
        return make_ladder(
            draws=self.draws,
            max_num_seqs=sizes.max_num_seqs,
            max_num_batched_tokens=sizes.max_num_batched_tokens,
            num_weights=self.model.config.num_linear_weights,
            max_drafts=sizes.max_drafts,
        )

    def engine(self, sizes: Sizes, num_blocks: int, *, plain: bool) -> CudaEngine:
        """`plain`: the pool is an allocation of its own, that lives as long as the process."""
        draft = None
        if self.guesser is not None:
            layout, model = self._layout(self.guesser.model.config), self.guesser.model
            pool = None
            if not self.guesser.shares_kv:
                memory = self._memory(num_blocks * layout.bytes_per_block, plain=False)
                pool = layout.pool(self.runtime, memory, num_blocks)
            draft = Draft(model, pool)
        return CudaEngine(
            self.model,
            self._pools(num_blocks, plain=plain),
            self.runtime,
            sizes,
            draws=self.draws,
            pdl=self.pdl,
            phrases=self.phrases,
            sampler=self.sampler,
            draft=draft,
            head=self.head,
        )

    def _pools(self, num_blocks: int, *, plain: bool) -> Pools:
        layout = self._model_layout
        if self.head is None:
            memory = self._memory(num_blocks * layout.bytes_per_block, plain=plain)
            return Pools.plain(layout.pool(self.runtime, memory, num_blocks))
        num_bytes = num_blocks * (layout.bytes_per_block + self._head_layout.bytes_per_block)
        memory = self._memory(num_bytes, plain=plain)
        return Pools.headed(self.runtime, memory, num_blocks, model=layout, head=self._head_layout)

    def _memory(self, num_bytes: int, *, plain: bool) -> Tensor:
        device = self.runtime.device
        return allocate(num_bytes, device) if plain else torch.empty(num_bytes, dtype=torch.uint8, device=device)


@dataclass(frozen=True, slots=True)
class Guesser:
    """A model that guesses."""

    model: Llama
    shares_kv: bool
    """It is made of the target's first layers."""


def _guesser(
    target: Llama,
    speculation: SpeculationConfig,
    draft: Checkpoint | None,
    dtype: torch.dtype,
    load_format: str,
    pdl: bool,
    runtime: Runtime,
) -> Guesser | None:
    if speculation.method == "first-layers":
        assert speculation.num_layers is not None
        return Guesser(target.first_layers(speculation.num_layers), shares_kv=True)
    if speculation.method != "draft" or draft is None:
        return None
    sizes = ModelConfig.from_hf(draft.config)
    if sizes.vocab_size != target.config.vocab_size:
        raise ValueError(f"the draft model has {sizes.vocab_size} tokens, the model {target.config.vocab_size}")
    parts = CudaParts(pdl=pdl)
    model = load_model(sizes, draft.weights, dtype, load_format, parts=parts, device=runtime.device)
    return Guesser(model, shares_kv=False)


def _num_blocks(make: _Maker, sizes: Sizes, memory: Memory, enforce_eager: bool) -> int:
    if memory.kv_memory_bytes is not None:
        room = memory.kv_memory_bytes
    else:
        usage = profile(make, sizes, enforce_eager)
        torch.cuda.empty_cache()
        free_bytes, total_bytes = torch.cuda.mem_get_info(make.runtime.device)
        room = kv_bytes(
            usage,
            total_bytes=total_bytes,
            free_bytes=free_bytes,
            utilization=memory.utilization,
            share=memory.share,
        )
        log.info(
            "GPU memory: weights %.2f GB, steps %.2f GB, graphs %.2f GB, KV %.2f GB",
            *(n / 1e9 for n in (usage.weights_bytes, usage.step_bytes, usage.graph_bytes, room)),
        )
    if room < 2 * make.bytes_per_block:
        raise ValueError(
            f"no GPU memory is left for KV: {max(0, room) / 1e9:.2f} GB beside the weights; raise "
            "--gpu-memory-utilization, lower --max-num-batched-tokens or --max-num-seqs, or use a smaller model"
        )
    return room // make.bytes_per_block


def _longest(wanted: int | None, longest: int, room: int) -> int:
    """Raises ValueError if what was asked for does not fit the pool."""
    if wanted is not None and wanted > room:
        raise ValueError(
            f"--max-model-len {wanted} does not fit: the KV cache holds {room} tokens; lower it, or raise "
            "--gpu-memory-utilization"
        )
    return min(longest, room)


@torch.inference_mode()
def profile(make: _Maker, sizes: Sizes, enforce_eager: bool) -> Usage:
    """Runs the largest steps there can be, on a pool of just the size."""
    weights_bytes = torch.cuda.memory_allocated(make.runtime.device)
    chunks = _chunk_lengths(sizes)
    num_blocks = sum(-(-length // make.block_size) for length in chunks)
    num_blocks = max(num_blocks, sizes.max_num_seqs)
    engine = make.engine(sizes, num_blocks, plain=False)
    pool_bytes = num_blocks * make.bytes_per_block
    engine_bytes = torch.cuda.memory_allocated(make.runtime.device) - weights_bytes - pool_bytes
    prompts = peak_bytes(lambda: _run_chunks(engine, chunks), make.runtime.device)
    decode = peak_bytes(lambda: _run_decode(engine, sizes.max_num_seqs), make.runtime.device) if make.draws else 0
    captured = 0 if enforce_eager else max(make.ladder(sizes).chunk_tokens, default=0)
    share = captured / sizes.max_num_batched_tokens
    graphs = 0 if enforce_eager else decode + int(prompts * share)
    return Usage(weights_bytes, engine_bytes + max(prompts, decode), graphs)


def _chunk_lengths(sizes: Sizes) -> Sequence[int]:
    """Chunks that make up the largest step."""
    whole, rest = divmod(sizes.max_num_batched_tokens, sizes.max_model_len)
    return ([sizes.max_model_len] * whole + [rest] * bool(rest))[: sizes.max_num_seqs]


def _run_chunks(engine: CudaEngine, lengths: Sequence[int]) -> None:
    rows, first = [], 0
    for seq_id, length in enumerate(lengths):
        num_blocks = -(-length // engine.block_size)
        table = range(first, first + num_blocks)
        rows.append(Row(seq_id, [0] * length, 0, table, keep_logits=True))
        first += num_blocks
    engine.launch(Plan(0, tuple(rows))).result()


def _run_decode(engine: CudaEngine, num_seqs: int) -> None:
    """With penalties and truncation, which take the most."""
    from ...wire.sampling import SamplingParams

    params = SamplingParams(top_k=50, top_p=0.9, repetition_penalty=1.1)
    for seq_id in range(num_seqs):
        engine.admit(SequenceSeed(seq_id, params, (0, seq_id), (0,), (), frozenset()))
    rows = tuple(Row(i, (0,), 0, (i,), (Draw(i, 0),)) for i in range(num_seqs))
    engine.launch(Plan(1, rows)).result()
    for seq_id in range(num_seqs):
        engine.retire(seq_id)
