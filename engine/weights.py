"""Weights by Hugging Face's names, from safetensors, GGUF or a seed; strict about names and shapes.

A source yields one tensor at a time, so that a model is packed without ever being held twice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

Shape = tuple[int, ...]

ROPE_FACTORS = "rope_freqs.weight"
"""GGUF's divisors of the rotary frequencies, [head_dim / 2]: the one tensor that a model may have or not."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAX_NAMED = 5
PREFIX = "model."
"""Of all tensors' names but the output layer's."""


class WeightSource(Protocol):
    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Of all tensors, by name, row-major: a linear layer's is (out, in)."""

    def load(self, name: str) -> Tensor:
        """A floating tensor of that shape. Raises ValueError if it is stored in a type that cannot be read."""


class Weights:
    """A source that has exactly the tensors a model needs, in one dtype."""

    def __init__(
        self,
        source: WeightSource,
        expected: Mapping[str, Shape],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises ValueError naming what is missing, left over, or of another shape."""
        check_shapes(expected, source.shapes)
        self._source, self._device = source, device
        self.dtype = dtype
        self.on_taken: Callable[[int], None] = lambda num_bytes: None
        """Told the bytes of each tensor, as soon as it is there."""

    @property
    def num_bytes(self) -> int:
        """Of all tensors, in the model's dtype."""
        return sum(prod(shape) for shape in self._source.shapes.values()) * self.dtype.itemsize

    def has(self, name: str) -> bool:
        return name in self._source.shapes

    def take(self, *names: str) -> Tensor:
        """The tensors of these names in the model's dtype on its device, joined along their rows if there are
        several."""
        parts = [self._source.load(name).to(self._device).to(self.dtype) for name in names]
        taken = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.on_taken(taken.nbytes)
        return taken


def check_shapes(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> None:
    missing = [name for name in expected if name not in given and name != ROPE_FACTORS]
    left_over = [name for name in given if name not in expected]
    differing = [
        f"{name} is {given[name]}, not {shape}" for name, shape in expected.items() if given.get(name, shape) != shape
    ]
    problems = [
        f"{what} {', '.join(names[:MAX_NAMED])}{f' and {len(names) - MAX_NAMED} more' * (len(names) > MAX_NAMED)}"
        for what, names in (("missing:", missing), ("left over:", left_over), ("wrong shape:", differing))
        if names
    ]
    if problems:
        raise ValueError("the weights do not fit the configuration; " + "; ".join(problems))


class SafetensorsFolder:
    """*.safetensors of a folder in Hugging Face layout: one file, or those that the index names."""

    def __init__(self, folder: Path, *, ignore: Sequence[str] = (), device: str = "cpu") -> None:
        """`ignore`: tensors that the model does not use. `device`: where they are loaded to. Raises ValueError where
        the files are not as announced."""
        self._device = device
        self._files: dict[str, Path] = {}
        self.shapes: Mapping[str, Shape] = {}
        for path in _safetensors_files(folder):
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name not in ignore and not _is_buffer(name)]  # noqa: SIM118
                self._files |= dict.fromkeys(names, path)
                self.shapes = {**self.shapes, **{name: tuple(file.get_slice(name).get_shape()) for name in names}}

    def load(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt", device=self._device) as file:
            tensor: Tensor = file.get_tensor(name)
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is stored as {tensor.dtype}: only fp32, fp16 and bf16 checkpoints are supported")
        return tensor


class Bare:
    """A checkpoint of a model without its output layer, as embedding models are published: names lack `model.`."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.shapes: Mapping[str, Shape] = {f"{PREFIX}{name}": shape for name, shape in source.shapes.items()}

    @staticmethod
    def is_bare(source: WeightSource) -> bool:
        return "embed_tokens.weight" in source.shapes

    def load(self, name: str) -> Tensor:
        return self._source.load(name.removeprefix(PREFIX))


def _is_buffer(name: str) -> bool:
    """Old checkpoints carry the rotary frequencies, which the configuration gives too."""
    return name.endswith(".rotary_emb.inv_freq")


def _safetensors_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        single = folder / "model.safetensors"
        if not single.exists():
            raise ValueError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")
        return [single]
    files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise ValueError(f"{folder} lacks {', '.join(absent[:MAX_NAMED])}, which its index names")
    return files


class DummyWeights:
    """Random weights, the same for every process on such a device: for measuring speed without a download."""

    def __init__(
        self, shapes: Mapping[str, Shape], *, seed: int = 0, std: float = 0.02, device: torch.device | str = "cpu"
    ) -> None:
        self.shapes: Mapping[str, Shape] = {name: shape for name, shape in shapes.items() if name != ROPE_FACTORS}
        self._names = list(self.shapes)
        self._seed, self._std, self._device = seed, std, device

    def load(self, name: str) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(self.shapes[name], device=self._device)
        generator = torch.Generator(self._device).manual_seed(self._seed + self._names.index(name))
        return torch.randn(self.shapes[name], generator=generator, device=self._device).mul_(self._std)
