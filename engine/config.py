"""Sizes and rules of a model, read from Hugging Face's config.json. No torch: launch and tests read it too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
DEFAULT_THETA = 10_000.0
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""The rope types that exist here, each with the fields it cannot do without."""
YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding. Its repr is canonical: equal text means equal angles."""

    kind: str
    theta: float
    scaling: tuple[tuple[str, float], ...] = ()
    """Sorted (name, value) pairs of the fields that `kind` reads, in transformers' names."""

    def value(self, name: str, default: float) -> float:
        return dict(self.scaling).get(name, default)

    def need(self, name: str) -> float:
        return dict(self.scaling)[name]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    family: str
    """One of `FAMILIES`' values."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    windows: tuple[int | None, ...]
    """A layer's sliding window: a token sees itself and the `window - 1` before it. None: all before it."""
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Reads a parsed config.json, in the spelling of transformers 4 or 5.

        Raises ValueError, with a sentence, on what is missing, contradictory or not supported.
        """
        fields = _Fields(config)
        family = _family(config)
        num_heads = fields.count("num_attention_heads")
        attention_bias = family != "mistral" and bool(config.get("attention_bias", False))
        made = cls(
            family=family,
            vocab_size=fields.count("vocab_size"),
            hidden_size=fields.count("hidden_size"),
            intermediate_size=fields.count("intermediate_size"),
            num_layers=fields.count("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=fields.count("num_key_value_heads", num_heads),
            head_dim=fields.count("head_dim", fields.count("hidden_size") // num_heads),
            norm_eps=float(fields.need("rms_norm_eps")),
            max_position_embeddings=fields.count("max_position_embeddings"),
            rope=_rope(config),
            windows=_windows(config, family, fields.count("num_hidden_layers")),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or attention_bias,
            o_bias=family != "qwen2" and attention_bias,
            mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
        )
        made._check(config)
        return made

    def _check(self, config: Mapping[str, Any]) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} attention heads cannot share {self.num_kv_heads} KV heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"the head dimension is {self.head_dim}: rotary embedding needs an even one")
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ValueError(f"the activation {config['hidden_act']!r} is not supported (only silu is)")
        if config.get("quantization_config"):
            method = config["quantization_config"].get("quant_method")
            raise ValueError(f"quantized checkpoints ({method}) are not supported, except GGUF")

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def num_linear_weights(self) -> int:
        """That every token meets: those of all layers, without embedding and head."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * heads + 2 * kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    def layout(self, dtype: str) -> list[dict[str, Any]]:
        """The KV cache as a list of cache groups: layers whose KV has one shape and lives by one rule."""
        groups = []
        for window in dict.fromkeys(self.windows):
            layer_ids = tuple(layer for layer, given in enumerate(self.windows) if given == window)
            shape = {"num_kv_heads": self.num_kv_heads, "head_dim": self.head_dim, "dtype": dtype}
            groups.append({"layer_ids": layer_ids, **shape, "window_tokens": window})
        return groups


class _Fields:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def need(self, name: str, default: Any = None) -> Any:
        value = self.config.get(name)
        if value is None:
            value = default
        if value is None:
            raise ValueError(f"config.json has no {name}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        value = self.need(name, default)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r} in config.json, not a positive whole number")
        return value


def _family(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    if len(names) != 1 or names[0] not in FAMILIES:
        given = " and ".join(map(repr, names)) or "none"
        raise ValueError(f"the architecture {given} is not supported (supported: {', '.join(FAMILIES)})")
    return FAMILIES[names[0]]


def _rope(config: Mapping[str, Any]) -> RopeConfig:
    """transformers 5 has `rope_parameters`; 4 has `rope_theta` and `rope_scaling`, whose `type` became `rope_type`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE_FIELDS:
        raise ValueError(f"the rope type {kind!r} is not supported (supported: {', '.join(ROPE_FIELDS)})")
    if given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        raise ValueError("rotary embedding of a part of the head dimension is not supported")
    theta = given.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA
    return RopeConfig(kind, float(theta), _scaling(kind, given, config))


def _scaling(kind: str, given: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    values = dict(given)
    name = "original_max_position_embeddings"  # one beside the rope fields wins, as in transformers
    values[name] = config.get(name) or given.get(name) or config.get("max_position_embeddings")
    if kind == "yarn" and values.get("factor") is None:
        values["factor"] = config["max_position_embeddings"] / values["original_max_position_embeddings"]
    needed = ROPE_FIELDS[kind]
    missing = [name for name in needed if values.get(name) is None]
    if missing:
        raise ValueError(f"the rope type {kind!r} needs {', '.join(missing)}")
    read = (*needed, *YARN_OPTIONS) if kind == "yarn" else needed
    return tuple(sorted((name, float(values[name])) for name in read if values.get(name) is not None))


def _windows(config: Mapping[str, Any], family: str, num_layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if family == "llama" or window is None or (family != "mistral" and not config.get("use_sliding_window", False)):
        return (None,) * num_layers
    return tuple(window if slides else None for slides in _sliding_layers(config, family, num_layers))


def _sliding_layers(config: Mapping[str, Any], family: str, num_layers: int) -> list[bool]:
    kinds = config.get("layer_types")
    if kinds is None:
        first = 0 if family == "mistral" else config.get("max_window_layers", 28)
        return [layer >= first for layer in range(num_layers)]
    if len(kinds) != num_layers or not {*kinds} <= {"sliding_attention", "full_attention"}:
        raise ValueError(f"layer_types {kinds} is not one of sliding_attention and full_attention for each layer")
    return [kind == "sliding_attention" for kind in kinds]
