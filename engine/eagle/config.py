"""Sizes and rules of an EAGLE head, read from its config.json. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..config import ModelConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""What the one layer of a head is like: heads name their own architecture, but keep their layer's `model_type`."""
SPECULATORS_TYPES = (None, "eagle", "eagle3")
NEUTRAL: dict[str, Any] = {
    "fc_norm": False,
    "norm_output": False,
    "add_para_norm": False,
    "layernorms": False,
    "logit_scale": 1.0,
    "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
}
"""Fields of variants that are not computed here, each at the value that changes nothing."""


@dataclass(frozen=True, slots=True)
class EagleConfig:
    version: int
    """Of the layout: 1 (which EAGLE-2 shares) or 3."""
    layer: ModelConfig
    """The head's decoder layer, as a model of one: its `vocab_size` is the target's."""
    draft_vocab_size: int
    """Tokens that the head can propose."""
    target_hidden_size: int
    aux_layers: tuple[int, ...]
    """Version 3: which residual streams of the target are read, ascending; i is what enters its layer i, so what layer
    i - 1 left. Version 1: (), for the one stream after the last layer."""
    fc_bias: bool
    """The checkpoint must have one; where this is False it may."""
    norm_before_residual: bool
    norm_before_fc: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], target: ModelConfig) -> "EagleConfig":
        """Reads a parsed config.json: EAGLE's own (Llama's fields, flat) or that of "speculators" (the same, nested).

        Raises ValueError, with a sentence, on what is not supported or does not fit the target.
        """
        nested = config.get("transformer_layer_config") or config.get("model") or {}
        own = {**nested, **config, **(config.get("eagle_config") or {})}
        _check_variant(own)
        version, layer = 3 if _is_eagle3(config) else 1, _layer(nested or config, target)
        made = cls(
            version=version,
            layer=layer,
            draft_vocab_size=own.get("draft_vocab_size") or layer.vocab_size,
            target_hidden_size=target.hidden_size,
            aux_layers=_aux_layers(config, target.num_layers) if version == 3 else (),
            fc_bias=bool(own.get("bias", own.get("fusion_bias", False))),
            norm_before_residual=bool(own.get("norm_before_residual", False)),
            norm_before_fc=version == 3 and bool(own.get("norm_before_fc", False)),
        )
        made._check(own.get("target_hidden_size"), target)
        return made

    @classmethod
    def from_folder(cls, folder: Path, target: ModelConfig) -> "EagleConfig":
        """As `from_hf`, of the folder's config.json. Raises ValueError if there is none."""
        path = folder / "config.json"
        if not path.exists():
            raise ValueError(f"{folder} has no config.json")
        return cls.from_hf(json.loads(path.read_text()), target)

    def cache_elements(self, block_size: int) -> int:
        """Numbers that cache.EagleCache holds for a block: K and V of its tokens, and one hidden state."""
        return block_size * 2 * self.layer.num_kv_heads * self.layer.head_dim + self.layer.hidden_size

    @property
    def feature_size(self) -> int:
        """Width of what `EagleHead.fuse` takes for a token."""
        return self.target_hidden_size * max(1, len(self.aux_layers))

    def _check(self, target_hidden_size: int | None, target: ModelConfig) -> None:
        if self.layer.vocab_size != target.vocab_size:
            raise ValueError(f"the EAGLE head has {self.layer.vocab_size} tokens, the target {target.vocab_size}")
        if not 0 < self.draft_vocab_size <= target.vocab_size:
            raise ValueError(f"draft_vocab_size is {self.draft_vocab_size}, of a vocabulary of {target.vocab_size}")
        expected = target_hidden_size or (self.layer.hidden_size if self.version == 1 else target.hidden_size)
        if expected != target.hidden_size:
            raise ValueError(f"the EAGLE head reads hidden states of {expected}, the target's are {target.hidden_size}")


def _check_variant(own: Mapping[str, Any]) -> None:
    for name, neutral in NEUTRAL.items():
        if own.get(name, neutral) not in (None, neutral):
            raise ValueError(f"EAGLE heads with {name} = {own[name]!r} are not supported (only {neutral!r} is)")
    if own.get("speculators_model_type") not in SPECULATORS_TYPES:
        raise ValueError(f"speculators of type {own['speculators_model_type']!r} are not supported (EAGLE heads are)")


def _is_eagle3(config: Mapping[str, Any]) -> bool:
    """EAGLE-3's own checkpoints call themselves LlamaForCausalLM, as EAGLE-1's do, but have a draft vocabulary."""
    names = [*(config.get("architectures") or ()), config.get("speculators_model_type") or ""]
    has_field = any(config.get(name) is not None for name in ("draft_vocab_size", "target_hidden_size"))
    return has_field or any("eagle3" in name.lower() for name in names)


def _layer(config: Mapping[str, Any], target: ModelConfig) -> ModelConfig:
    kind = config.get("model_type") or "llama"
    if kind not in ARCHITECTURES:
        raise ValueError(f"EAGLE heads with a layer of {kind!r} are not supported ({', '.join(ARCHITECTURES)} are)")
    num_layers = config.get("num_hidden_layers", 1)
    if num_layers != 1:
        raise ValueError(f"the EAGLE head has {num_layers} layers: only heads of one are supported")
    made = ModelConfig.from_hf({**config, "num_hidden_layers": 1, "architectures": [ARCHITECTURES[kind]]})
    return replace(
        made,
        qkv_bias=bool(config.get("qkv_bias", made.qkv_bias)),
        # heads are trained on shorter texts than they are used for: their positions are the target's
        max_position_embeddings=max(made.max_position_embeddings, target.max_position_embeddings),
    )


def _aux_layers(config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """A top-level list counts streams as `EagleConfig.aux_layers` does (vLLM's and speculators' reading); one within
    `eagle_config` names the layers whose outputs they are (ModelOpt's, SpecForge's and SGLang's)."""
    name = "eagle_aux_hidden_state_layer_ids"
    inner = (config.get("eagle_config") or {}).get(name)
    if config.get(name):
        aux_layers = tuple(config[name])
    elif inner:
        aux_layers = tuple(layer_id + 1 for layer_id in inner)
    else:
        aux_layers = (2, num_layers // 2, num_layers - 3)
    is_ascending = all(low < high for low, high in pairwise(aux_layers))
    if not is_ascending or aux_layers[0] < 0 or aux_layers[-1] > num_layers:
        raise ValueError(f"{name}: the streams {aux_layers} are not ascending ones of a target of {num_layers} layers")
    return aux_layers
