"""Hugging Face's config.json for a GGUF file: the same model, in the field names of transformers' configurations.

Keys are those of the GGUF specification and of llama.cpp's converter. What cannot be stated exactly is an error.
"""

from collections.abc import Mapping
from math import log
from typing import Any

from ..wire.messages import Pooling
from .gguf_metadata import GgufHeader

ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
DEFAULT_ROPE_THETA = 10_000.0
POOLING_TYPES: dict[int, Pooling | None] = {0: None, 1: "mean", 2: "cls", 3: "last"}
"""llama.cpp's numbers; 4 is a reranker's."""


def gguf_config(header: GgufHeader) -> dict[str, Any]:
    """config.json of the model that `header` describes. Raises ValueError on what we cannot run or express."""
    keys = ArchKeys(header.metadata)
    architecture, model_type = ARCHITECTURES[keys.arch]
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": keys.need("embedding_length"),
        "intermediate_size": keys.per_layer("feed_forward_length"),
        "num_hidden_layers": keys.need("block_count"),
        "num_attention_heads": keys.per_layer("attention.head_count"),
        "num_key_value_heads": keys.per_layer("attention.head_count_kv", keys.per_layer("attention.head_count")),
        "head_dim": head_dim(keys),
        "rms_norm_eps": keys.need("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.need("context_length"),
        "rope_theta": keys.get("rope.freq_base", DEFAULT_ROPE_THETA),
        "rope_scaling": rope_scaling(keys),
        "vocab_size": vocab_size(header),
        "tie_word_embeddings": header.tensor("output.weight") is None,
        "attention_bias": header.tensor("blk.0.attn_q.bias") is not None,
        "mlp_bias": header.tensor("blk.0.ffn_down.bias") is not None,
    }
    config |= sliding_window(keys)
    for name in ("bos", "eos"):
        config[f"{name}_token_id"] = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return config


def gguf_pooling(header: GgufHeader) -> Pooling | None:
    """How an embedding model pools; None where the file does not say. Raises ValueError on rerankers."""
    kind = ArchKeys(header.metadata).get("pooling_type", 0)
    if kind not in POOLING_TYPES:
        raise ValueError(f"GGUF models of pooling type {kind} are not supported")
    return POOLING_TYPES[kind]


class ArchKeys:
    """The metadata under `{architecture}.`."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.arch = str(metadata.get("general.architecture"))
        if self.arch not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"the GGUF architecture {self.arch!r} is not supported (supported: {known})")
        if self.get("expert_count", 0):
            raise ValueError("GGUF models with experts (mixture of experts) are not supported")
        if metadata.get("split.count", 1) > 1:
            raise ValueError("the GGUF file is one part of several: merge them with `llama-gguf-split --merge`")

    def get(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.arch}.{name}", default)

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise ValueError(f"the GGUF metadata has no {self.arch}.{name}")
        return value

    def per_layer(self, name: str, default: Any = None) -> Any:
        """A value that GGUF may give as one number or as a list of one a layer; the list must be of equals."""
        value = self.need(name) if default is None else self.get(name, default)
        if not isinstance(value, list):
            return value
        if len(set(value)) != 1:
            raise ValueError(f"{self.arch}.{name} differs between layers, which is not supported")
        return value[0]


def head_dim(keys: ArchKeys) -> int:
    default = keys.need("embedding_length") // keys.per_layer("attention.head_count")
    key_length = keys.get("attention.key_length", default)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.get(name, key_length) != key_length:
            raise ValueError(f"{keys.arch}.{name} is {keys.get(name)}, the key length {key_length}: not supported")
    return key_length


def vocab_size(header: GgufHeader) -> int:
    embedding = header.tensor("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError("the GGUF file has no token_embd.weight with two dimensions")
    return embedding.shape[1]


def rope_scaling(keys: ArchKeys) -> dict[str, Any] | None:
    """rope_scaling as transformers spells it, None without. Llama 3's factors come as the tensor rope_freqs.weight."""
    kind = keys.get("rope.scaling.type")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear"))
    if kind is None and factor is not None:
        kind = "linear"
    if kind in (None, "none") or (kind == "linear" and factor in (None, 1.0)):
        return None
    if kind not in ("linear", "yarn"):
        raise ValueError(f"the rope scaling {kind!r} of the GGUF file is not supported")
    if factor is None:
        raise ValueError(f"the GGUF metadata has no {keys.arch}.rope.scaling.factor")
    return {"rope_type": "linear", "factor": factor} if kind == "linear" else yarn(keys, factor)


def yarn(keys: ArchKeys, factor: float) -> dict[str, Any]:
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.need("rope.scaling.original_context_length"),
        "beta_fast": keys.get("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.get("rope.scaling.yarn_beta_slow", 1.0),
    }
    attn_factor = keys.get("rope.scaling.yarn_attn_factor", keys.get("rope.scaling.attn_factor", 1.0))
    if attn_factor != 1.0:  # GGUF's factor multiplies YaRN's own, transformers' one replaces it
        scaling["attention_factor"] = attn_factor * (0.1 * log(factor) + 1.0)
    return scaling


def sliding_window(keys: ArchKeys) -> dict[str, Any]:
    """The window's fields: a Llama with one is a Mistral, Qwen needs to be told to use it."""
    window = keys.get("attention.sliding_window")
    if not window:
        return {}
    if keys.arch == "llama":
        return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
