"""What an EAGLE head, which every worker of a model then has, changes of the model's needs and of its KV. No torch."""

from dataclasses import replace
from pathlib import Path

from msgspec.structs import replace as replace_struct

from ..engine.eagle.config import EagleConfig
from ..engine.speculation_config import SpeculationConfig
from ..wire.messages import CacheGroup, Fingerprint
from .model import NUM_DTYPE_BYTES, Model
from .resolve import ModelFacts


def find_head_config(speculation: SpeculationConfig, target: Model) -> EagleConfig | None:
    """Of the head that settled `speculation` names; None if it has none. Raises ValueError on one that does not fit."""
    if speculation.method != "eagle":
        return None
    assert speculation.model is not None
    return EagleConfig.from_folder(Path(speculation.model), target.config)


def facts_with_head(facts: ModelFacts, head: EagleConfig | None, dtype: str, block_size: int) -> ModelFacts:
    """What a token takes in the KV cache is rounded up."""
    if head is None:
        return facts
    num_bytes = -(-head.cache_elements(block_size) * NUM_DTYPE_BYTES[dtype] // block_size)
    return replace(facts, kv_bytes_per_token=facts.kv_bytes_per_token + num_bytes)


def fingerprint_with_head(fingerprint: Fingerprint, head: EagleConfig | None, dtype: str) -> Fingerprint:
    """Its KV is one more layer of the layout, so that a worker with a head and one without do not go together."""
    if head is None:
        return fingerprint
    layer, layer_id = head.layer, fingerprint.num_layers
    group = CacheGroup((layer_id,), layer.num_kv_heads, layer.head_dim, dtype, layer.windows[0])
    return replace_struct(fingerprint, layout=(*fingerprint.layout, group))
