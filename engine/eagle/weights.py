"""Weights of an EAGLE head under one set of names, from safetensors or torch's own format; strict, as the model's."""

import pickle
from collections.abc import Container, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..models.llama import FUSED
from ..models.registry import MODELS
from ..weights import FLOATS, Shape, Weights
from .config import EagleConfig

LAYER = "layers.0"
PREFIXES = {"model.": "", "midlayer.": f"{LAYER}.", "transformer.": f"{LAYER}.", "fusion_fc.": "fc."}
"""What published names begin with, and what stands for it here."""
IGNORED = ("t2d", f"{LAYER}.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq")
"""What d2t (which draft tokens have a target's) and the configuration say too."""
INPUTS = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")


class EagleWeights(Weights):
    def __init__(
        self,
        config: EagleConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """Of `read_tensors`. Raises ValueError naming what is missing, left over, or of another shape."""
        super().__init__(_Loaded(tensors), expected_shapes(config, tensors), dtype, device)
        self._tensors, self._vocab_size = tensors, config.layer.vocab_size

    def take_linear(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of one of llama's `FUSED`, in the head's layer."""
        parts = [f"{LAYER}.{part}" for part in FUSED[name]]
        has_bias = self.has(f"{parts[0]}.bias")
        bias = self.take(*(f"{part}.bias" for part in parts)) if has_bias else None
        return self.take(*(f"{part}.weight" for part in parts)), bias

    def target_ids(self) -> Tensor | None:
        """int64 [draft_vocab_size]: the target's id of each draft token; None where both vocabularies are the same."""
        if not self.has("d2t"):
            return None
        own = torch.arange(len(self._tensors["d2t"]))
        ids = own + self._tensors["d2t"].long().cpu()
        if len(ids.unique()) < len(ids) or ids.min() < 0 or ids.max() >= self._vocab_size:
            raise ValueError(f"d2t does not lead to distinct tokens of a vocabulary of {self._vocab_size}")
        is_same = len(ids) == self._vocab_size and torch.equal(ids, own)
        return None if is_same else ids.to(self._device)


class _Loaded:
    """A WeightSource of tensors that are there."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.shapes: Mapping[str, Shape] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def load(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is stored as {tensor.dtype}: only fp32, fp16 and bf16 heads are supported")
        return tensor


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All that a head is computed from, by our names. Raises ValueError if the folder has no readable checkpoint."""
    safetensors, pickled = sorted(folder.glob("model*.safetensors")), folder / "pytorch_model.bin"
    if safetensors:
        given = {name: tensor for path in safetensors for name, tensor in load_file(path).items()}
    elif pickled.exists():
        given = _unpickle(pickled)
    else:
        raise ValueError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    tensors: dict[str, Tensor] = {}
    for name, tensor in given.items():
        ours = canonical_name(name)
        if ours in tensors:
            raise ValueError(f"{folder} has {ours} under two names, one of them {name}")
        if ours not in IGNORED:
            tensors[ours] = tensor
    return tensors


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        given = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, and is not read") from error
    if not isinstance(given, dict) or not all(isinstance(value, Tensor) for value in given.values()):
        raise ValueError(f"{path} is not a table of tensors")
    return given


def canonical_name(name: str) -> str:
    for prefix, ours in PREFIXES.items():
        if name.startswith(prefix):
            name = ours + name.removeprefix(prefix)
    return name


def expected_shapes(config: EagleConfig, given: Container[str]) -> dict[str, Shape]:
    """Every tensor of the head, by our names; those that a head may have or not, if they are `given`."""
    hidden, vocab_size = config.layer.hidden_size, config.layer.vocab_size
    into = config.feature_size if config.version == 3 else 2 * hidden
    shapes: dict[str, Shape] = {f"{LAYER}.{name}": shape for name, shape in _layer_shapes(config).items()}
    shapes["fc.weight"] = (hidden, into)
    if config.version == 3:
        shapes["norm.weight"] = (hidden,)
    if config.norm_before_fc:
        shapes["input_norm.weight"] = (into,)
    is_reduced = config.draft_vocab_size < vocab_size
    optional: dict[str, tuple[Shape, bool]] = {
        "fc.bias": ((hidden,), config.fc_bias),
        "embed_tokens.weight": ((vocab_size, hidden), hidden != config.target_hidden_size),
        "lm_head.weight": ((config.draft_vocab_size, hidden), is_reduced or hidden != config.target_hidden_size),
        "d2t": ((config.draft_vocab_size,), is_reduced),
    }
    return shapes | {name: shape for name, (shape, needed) in optional.items() if needed or name in given}


def _layer_shapes(config: EagleConfig) -> dict[str, Shape]:
    """Version 1 has no norm before attention; version 3 has two, and q, k and v read both results side by side."""
    shapes = MODELS[config.layer.family].layer_shapes(config.layer)
    if config.version == 1:
        del shapes["input_layernorm.weight"]
        return shapes
    wide = {name: (shapes[name][0], 2 * shapes[name][1]) for name in INPUTS}
    return shapes | wide | {"hidden_norm.weight": (config.layer.hidden_size,)}
