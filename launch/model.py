"""MODEL, as the processes of this host use it: found, fetched if need be; its sizes, and what identifies it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..engine.config import ModelConfig
from ..engine.encoder.config import EncoderConfig, is_encoder, read_max_seq_length
from ..text.resolve import ResolvedModel
from ..text.resolve import resolve as resolve_model
from ..wire.messages import CacheGroup, Fingerprint
from .config import ModelOptions
from .demo_model import NAME, DemoModelError, cache_dir, ensure_demo_model
from .gpu_memory import Footprint
from .limits import Device
from .resolve import ConfigError, ModelFacts

NUM_DTYPE_BYTES = {"auto": 4, "float32": 4, "bfloat16": 2, "float16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}
"""What a KV element takes, at most, for each --dtype and --kv-cache-dtype."""
COUNTED_BYTES = 1
"""A token of an encoder: it keeps no KV, its worker only counts blocks."""
HALF_DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Model:
    resolved: ResolvedModel
    config: ModelConfig | EncoderConfig
    load_format: Literal["auto", "dummy"]
    draft: "Model | None" = None
    """The smaller model that guesses for it, in the same worker: their needs add up."""

    @property
    def path(self) -> Path:
        """The .gguf file or the folder: as MODEL, it names the same model without asking a hub."""
        return self.resolved.weights

    @property
    def name_for_workers(self) -> str:
        """MODEL for workers that were given none, maybe on other hosts: a hub id stays one, a path becomes absolute."""
        return str(self.path) if Path(self.resolved.source).expanduser().exists() else self.resolved.source

    @property
    def generates(self) -> bool:
        """False of an encoder: it makes vectors of prompts, and no text."""
        return isinstance(self.config, ModelConfig)

    @property
    def decoder_config(self) -> ModelConfig:
        """Of a model that generates. Raises ConfigError for others."""
        if isinstance(self.config, EncoderConfig):
            raise ConfigError(f"{self.resolved.source} is an encoder: it does not generate text")
        return self.config

    def facts(self, dtype: str) -> ModelFacts:
        if isinstance(self.config, EncoderConfig):
            return ModelFacts(self.config.max_position_embeddings, COUNTED_BYTES)
        groups = self.layout(dtype)
        elements = sum(2 * len(group.layer_ids) * group.num_kv_heads * group.head_dim for group in groups)
        kv_bytes = 0 if self.draft is None else self.draft.facts(dtype).kv_bytes_per_token
        return ModelFacts(self.config.max_position_embeddings, elements * NUM_DTYPE_BYTES[dtype] + kv_bytes)

    def layout(self, dtype: str) -> tuple[CacheGroup, ...]:
        return tuple(CacheGroup(**group) for group in self.config.layout(dtype))

    def gpu_dtype(self, wanted: str) -> str:
        """What `auto` means on a GPU: the checkpoint's own, halved if it is float32 (or, in a .gguf, quantized). For an
        encoder it stays what it is, see engine/encoder/load.py."""
        if wanted != "auto" or isinstance(self.config, EncoderConfig):
            return wanted
        config = self.resolved.config()
        own = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        return own if own in HALF_DTYPES else "bfloat16"

    def footprint(self, dtype: str) -> Footprint:
        """`dtype` is that of weights and activations. Logits are fp32, and sampling holds a copy and an order."""
        config, num_bytes = self.config, NUM_DTYPE_BYTES[dtype]
        draft_bytes = 0 if self.draft is None else self.draft.footprint(dtype).weight_bytes
        return Footprint(
            weight_bytes=num_parameters(config) * num_bytes + draft_bytes,
            bytes_per_batched_token=(6 * config.hidden_size + 3 * config.intermediate_size) * num_bytes,
            bytes_per_seq=3 * config.vocab_size * 4,
        )

    def needs(self, dtype: str, kv_cache_dtype: str, device: Device) -> tuple[ModelFacts, Footprint]:
        """Of a worker on this device with these --dtype and --kv-cache-dtype."""
        if device == "cuda":
            dtype = self.gpu_dtype(dtype)
        return self.facts(dtype if kv_cache_dtype == "auto" else kv_cache_dtype), self.footprint(dtype)

    def fingerprint(self, block_size: int, dtype: str, engine: str) -> Fingerprint:
        """`dtype` is what the engine made of --dtype. Tokens of a fake engine and a real one are never mixed."""
        return Fingerprint(
            weights=self.resolved.weights_digest if engine == "torch" else engine,
            tokenizer=self.resolved.tokenizer_digest,
            rope=repr(self.config.rope),
            num_layers=self.config.num_layers,
            vocab_size=self.config.vocab_size,
            block_size=block_size,
            layout=self.layout(dtype),
        )


def find_model(options: ModelOptions) -> Model:
    """Raises ConfigError if there is no such model, or it is of a kind that is not supported."""
    try:
        source = options.model or str(ensure_demo_model())
        resolved = resolve_model(source, cache_dir(), load_format=options.load_format)
        return Model(resolved, read_config(resolved), options.load_format)
    except (DemoModelError, ValueError) as error:
        raise ConfigError(str(error)) from error


def read_config(resolved: ResolvedModel) -> ModelConfig | EncoderConfig:
    """Raises ValueError for a model that is not supported."""
    config = resolved.config()
    if is_encoder(config):
        return EncoderConfig.from_hf(config, read_max_seq_length(resolved.folder))
    return ModelConfig.from_hf(config)


def num_parameters(config: ModelConfig | EncoderConfig) -> int:
    """Of the matrices: norms and biases are small beside them."""
    if isinstance(config, EncoderConfig):
        return config.num_parameters
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    layer = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    return config.num_layers * layer + embeddings


def served_names(model: str | None) -> tuple[str, ...]:
    """What clients may call it: a hub id, or the name of the folder or file."""
    if model is None:
        return (NAME,)
    path = Path(model)
    if path.is_dir():
        return (path.resolve().name,)
    return (path.stem,) if path.suffix == ".gguf" else (model,)
