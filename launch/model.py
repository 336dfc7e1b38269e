"""MODEL, as the processes of this host use it: found, fetched if need be; its sizes, and what identifies it."""

from dataclasses import dataclass
from pathlib import Path

from ..engine.config import ModelConfig
from ..text.resolve import ResolvedModel
from ..text.resolve import resolve as resolve_model
from ..wire.messages import CacheGroup, Fingerprint
from .config import ModelOptions
from .demo_model import NAME, DemoModelError, cache_dir, ensure_demo_model
from .resolve import ConfigError, ModelFacts

NUM_DTYPE_BYTES = {"auto": 4, "float32": 4, "bfloat16": 2}
"""What a KV element takes, at most, for each --dtype."""


@dataclass(frozen=True, slots=True)
class Model:
    resolved: ResolvedModel
    config: ModelConfig
    load_format: str

    @property
    def path(self) -> Path:
        """The .gguf file or the folder: as MODEL, it names the same model without asking a hub."""
        return self.resolved.weights

    @property
    def name_for_workers(self) -> str:
        """MODEL for workers that were given none, maybe on other hosts: a hub id stays one, a path becomes absolute."""
        return str(self.path) if Path(self.resolved.source).expanduser().exists() else self.resolved.source

    def facts(self, dtype: str) -> ModelFacts:
        groups = self.layout(dtype)
        elements = sum(2 * len(group.layer_ids) * group.num_kv_heads * group.head_dim for group in groups)
        return ModelFacts(self.config.max_position_embeddings, elements * NUM_DTYPE_BYTES[dtype])

    def layout(self, dtype: str) -> tuple[CacheGroup, ...]:
        return tuple(CacheGroup(**group) for group in self.config.layout(dtype))

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
        return Model(resolved, ModelConfig.from_hf(resolved.config()), options.load_format)
    except (DemoModelError, ValueError) as error:
        raise ConfigError(str(error)) from error


def served_names(model: str | None) -> tuple[str, ...]:
    """What clients may call it: a hub id, or the name of the folder or file."""
    if model is None:
        return (NAME,)
    path = Path(model)
    if path.is_dir():
        return (path.resolve().name,)
    return (path.stem,) if path.suffix == ".gguf" else (model,)
