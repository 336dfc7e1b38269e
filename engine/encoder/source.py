"""An encoder's checkpoint, under the names that BertModel gives its tensors."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..weights import DummyWeights, SafetensorsFolder, Shape, WeightSource

PREFIX = re.compile(r"(?:bert|roberta)\.")
"""Of everything below the head, where the checkpoint has one."""
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
IGNORED = re.compile(r"embeddings\.(?:position_ids|token_type_ids)|cls\..*|lm_head\..*|dropout\..*")
"""Buffers, and heads of pre-training."""
POOLER = re.compile(r"pooler\..*")


class EncoderFolder:
    """A folder with safetensors as a source, without tensors that are none of `expected`'s business."""

    def __init__(self, folder: Path, expected: Mapping[str, Shape], device: str) -> None:
        self._files = SafetensorsFolder(folder, device=device)
        self._names = {name: given for given in self._files.shapes if (name := _name(given, expected)) is not None}
        self.shapes: Mapping[str, Shape] = {name: self._files.shapes[given] for name, given in self._names.items()}

    def load(self, name: str) -> Tensor:
        return self._files.load(self._names[name])


class DummyEncoder(DummyWeights):
    """Its norms are called LayerNorm, and must not shrink what passes."""

    def load(self, name: str) -> Tensor:
        tensor = super().load(name)
        return tensor.fill_(1) if name.endswith("LayerNorm.weight") else tensor


def open_encoder(folder: Path, expected: Mapping[str, Shape], load_format: str, device: str) -> WeightSource:
    """Raises ValueError if there are no weights."""
    if load_format == "dummy":
        return DummyEncoder(expected, device=device)
    return EncoderFolder(folder, expected, device)


def _name(given: str, expected: Mapping[str, Shape]) -> str | None:
    name = PREFIX.sub("", given, count=1) if PREFIX.match(given) else given
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    if IGNORED.fullmatch(name) or (POOLER.fullmatch(name) and name not in expected):
        return None
    return name
