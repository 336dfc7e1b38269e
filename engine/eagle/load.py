"""From a folder with an EAGLE checkpoint, and the target it was trained for, to a head."""

from pathlib import Path

import torch
from torch import Tensor

from ..models.llama import Llama
from ..parts import Parts
from ..weights import WeightSource
from .config import EagleConfig
from .entry import TargetHead
from .head import EagleHead, needs_target_head
from .weights import EagleWeights, read_tensors


@torch.inference_mode()
def load_eagle(
    folder: Path,
    target: Llama,
    parts: Parts,
    dtype: torch.dtype,
    *,
    target_weights: WeightSource | None = None,
    layer_id: int = 0,
) -> EagleHead:
    """The head in `folder` (config.json beside model.safetensors or pytorch_model.bin), on the target's device.

    `target_weights`: the target's checkpoint, for its last norm and output layer, which EAGLE-1 heads and those without
    an lm_head compute with, and which a loaded model no longer holds apart. `layer_id`: see `EagleHead`. Raises
    ValueError, with a sentence, on what does not fit or is not supported.
    """
    config = EagleConfig.from_folder(folder, target.config)
    weights = EagleWeights(config, read_tensors(folder), dtype, target.embedding.device)
    head = _target_head(target, target_weights, dtype) if needs_target_head(config, weights) else None
    return EagleHead(config, weights, parts, _embedding(weights, target), head, layer_id=layer_id)


def _embedding(weights: EagleWeights, target: Llama) -> Tensor:
    """The head's own if it was trained; mostly it is a copy of the target's, which is then held once."""
    if not weights.has("embed_tokens.weight"):
        return target.embedding.to(weights.dtype)
    own = weights.take("embed_tokens.weight")
    is_copy = own.dtype == target.embedding.dtype and torch.equal(own, target.embedding)
    return target.embedding if is_copy else own


def _target_head(target: Llama, source: WeightSource | None, dtype: torch.dtype) -> TargetHead:
    if source is None:
        raise ValueError("this EAGLE head computes with the target's last norm and output layer: give target_weights")
    device, config = target.embedding.device, target.config
    weight = target.embedding if config.tie_embeddings else source.load("lm_head.weight")
    norm = source.load("model.norm.weight")
    return TargetHead(norm.to(device, dtype), config.norm_eps, weight.to(device, dtype))
