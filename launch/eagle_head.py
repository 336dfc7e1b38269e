"""What an EAGLE head, which every worker of a model then has, changes of the model's needs and of its KV. No torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from msgspec.structs import replace as replace_struct

from ..engine.eagle.config import EagleConfig
from ..engine.speculation_config import SpeculationConfig
from ..text.weights_digest import file_digest, weights_digest
from ..wire.messages import CacheGroup, Fingerprint
from .gpu_memory import Footprint
from .limits import Device
from .model import NUM_DTYPE_BYTES, Model, num_parameters
from .resolve import ModelFacts


@dataclass(frozen=True, slots=True)
class Head:
    config: EagleConfig
    digest: str
    """Of its weights."""

    @property
    def num_parameters(self) -> int:
        """Of its matrices, at most: whether embedding and output layer are the model's only its checkpoint says."""
        layer = replace(self.config.layer, tie_embeddings=False)
        is_wide = self.config.version == 3
        into = self.config.feature_size if is_wide else 2 * layer.hidden_size
        qkv = (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim * layer.hidden_size
        return num_parameters(layer) + layer.hidden_size * into + (qkv if is_wide else 0)


def find_head(speculation: SpeculationConfig, target: Model) -> Head | None:
    """That settled `speculation` names; None if it has none. Raises ValueError on one that does not fit."""
    if speculation.method != "eagle":
        return None
    assert speculation.model is not None
    folder = Path(speculation.model)
    return Head(EagleConfig.from_folder(folder, target.decoder_config), _digest(folder))


def needs_with_head(
    model: Model, head: Head | None, *, dtype: str, kv_cache_dtype: str, device: Device, block_size: int
) -> tuple[ModelFacts, Footprint]:
    """As `Model.needs`."""
    facts, footprint = model.needs(dtype, kv_cache_dtype, device)
    if head is None:
        return facts, footprint
    resolved = model.gpu_dtype(dtype) if device == "cuda" else dtype
    kv_dtype = resolved if kv_cache_dtype == "auto" else kv_cache_dtype
    weight_bytes = footprint.weight_bytes + head.num_parameters * NUM_DTYPE_BYTES[resolved]
    return facts_with_head(facts, head, kv_dtype, block_size), replace(footprint, weight_bytes=weight_bytes)


def facts_with_head(facts: ModelFacts, head: Head | None, dtype: str, block_size: int) -> ModelFacts:
    """What a token takes in the KV cache is rounded up."""
    if head is None:
        return facts
    num_bytes = -(-head.config.cache_elements(block_size) * NUM_DTYPE_BYTES[dtype] // block_size)
    return replace(facts, kv_bytes_per_token=facts.kv_bytes_per_token + num_bytes)


def fingerprint_with_head(fingerprint: Fingerprint, head: Head | None, dtype: str) -> Fingerprint:
    """Its KV is one more layer of the layout, and its weights count as the model's: workers without a head, or with
    another, do not go together with this one."""
    if head is None:
        return fingerprint
    layer, layer_id = head.config.layer, fingerprint.num_layers
    group = CacheGroup((layer_id,), layer.num_kv_heads, layer.head_dim, dtype, layer.windows[0])
    weights = f"{fingerprint.weights}+{head.digest}"
    return replace_struct(fingerprint, weights=weights, layout=(*fingerprint.layout, group))


def _digest(folder: Path) -> str:
    """Raises ValueError if it holds no weights."""
    pickled = folder / "pytorch_model.bin"
    has_safetensors = any(folder.glob("*.safetensors"))
    return file_digest(pickled) if pickled.exists() and not has_safetensors else weights_digest(folder)
