"""BERT (Devlin et al. 2018) and RoBERTa (Liu et al. 2019): all tokens of a prompt see each other.

Prompts lie one after another, [N, hidden]: the linear layers compute all of them at once, without padding, and
attention takes those of one length together.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import Linear, PlainLinear, make_linear
from ..weights import Shape, Weights
from .config import EncoderConfig

GELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Encoder:
    def __init__(self, config: EncoderConfig, weights: Weights) -> None:
        self.config = config
        self._words = weights.take("embeddings.word_embeddings.weight")
        self._positions = weights.take("embeddings.position_embeddings.weight")
        self._types = weights.take("embeddings.token_type_embeddings.weight")
        self._norm = _Norm(weights, "embeddings.LayerNorm", config.norm_eps)
        self._layers = [_Layer(config, weights, f"encoder.layer.{i}.") for i in range(config.num_layers)]
        self._head = _Head(config, weights) if config.num_labels else None

    def forward(self, prompts: Sequence[Sequence[int]], types: Sequence[int]) -> Tensor:
        """Prompts and the type of each of their tokens -> last hidden states [N, hidden_size], prompt after prompt."""
        device = self._words.device
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        first = self.config.first_position
        positions = torch.tensor([p for prompt in prompts for p in range(first, first + len(prompt))], device=device)
        x = self._words[ids] + self._positions[positions] + self._types[torch.tensor(types, device=device)]
        runs = _Runs(list(map(len, prompts)), device)
        x = self._norm(x)
        for layer in self._layers:
            x = layer(x, runs)
        return x

    def scores(self, first: Tensor) -> Tensor:
        """States of prompts' first tokens, [B, hidden_size] -> [B, num_labels]. Only where there is a head."""
        assert self._head is not None, "the model has no classification head"
        return self._head(first)

    @staticmethod
    def weight_shapes(config: EncoderConfig) -> dict[str, Shape]:
        hidden, inner = config.hidden_size, config.intermediate_size
        shapes: dict[str, Shape] = {
            "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
            "embeddings.position_embeddings.weight": (config.num_positions, hidden),
            "embeddings.token_type_embeddings.weight": (config.num_token_types, hidden),
            **_norm_shapes("embeddings.LayerNorm", hidden),
        }
        for i in range(config.num_layers):
            layer = f"encoder.layer.{i}."
            for name in ("query", "key", "value"):
                shapes |= _linear_shapes(f"{layer}attention.self.{name}", hidden, hidden)
            shapes |= _linear_shapes(f"{layer}attention.output.dense", hidden, hidden)
            shapes |= _norm_shapes(f"{layer}attention.output.LayerNorm", hidden)
            shapes |= _linear_shapes(f"{layer}intermediate.dense", inner, hidden)
            shapes |= _linear_shapes(f"{layer}output.dense", hidden, inner)
            shapes |= _norm_shapes(f"{layer}output.LayerNorm", hidden)
        return shapes | _Head.weight_shapes(config) if config.num_labels else shapes


class _Runs:
    """Where prompts lie in [N]: those of one length together."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        starts: dict[int, list[int]] = defaultdict(list)
        start = 0
        for length in lengths:
            starts[length].append(start)
            start += length
        self.groups = [
            torch.tensor(its, device=device)[:, None] + torch.arange(length, device=device)
            for length, its in starts.items()
        ]
        """[prompts, length] each."""


class _Layer:
    def __init__(self, config: EncoderConfig, weights: Weights, prefix: str) -> None:
        self._num_heads, self._head_dim = config.num_heads, config.head_dim
        self._activate = GELUS[config.activation]
        attention = f"{prefix}attention."
        self._qkv = _linear(weights, *(f"{attention}self.{name}" for name in ("query", "key", "value")))
        self._out = _linear(weights, f"{attention}output.dense")
        self._norm = _Norm(weights, f"{attention}output.LayerNorm", config.norm_eps)
        self._up = _linear(weights, f"{prefix}intermediate.dense")
        self._down = _linear(weights, f"{prefix}output.dense")
        self._last_norm = _Norm(weights, f"{prefix}output.LayerNorm", config.norm_eps)

    def __call__(self, x: Tensor, runs: _Runs) -> Tensor:
        x = self._norm(x + self._out(self._attend(self._qkv(x), runs)))
        return self._last_norm(x + self._down(self._activate(self._up(x))))

    def _attend(self, qkv: Tensor, runs: _Runs) -> Tensor:
        """[N, 3 * hidden] -> [N, hidden]"""
        heads = qkv.view(-1, 3, self._num_heads, self._head_dim)
        mixed = torch.empty_like(heads[:, 0])
        for indices in runs.groups:
            q, k, v = heads[indices].permute(2, 0, 3, 1, 4)  # [prompts, heads, length, head_dim] each
            mixed[indices] = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return mixed.flatten(1)


class _Head:
    """States of first tokens to scores: a dense layer with tanh, and one row a label."""

    def __init__(self, config: EncoderConfig, weights: Weights) -> None:
        self._dense, self._labels = (_linear(weights, name) for name in _Head._names(config))

    def __call__(self, first: Tensor) -> Tensor:
        return self._labels(torch.tanh(self._dense(first)))

    @staticmethod
    def _names(config: EncoderConfig) -> tuple[str, str]:
        return (
            ("pooler.dense", "classifier") if config.family == "bert" else ("classifier.dense", "classifier.out_proj")
        )

    @staticmethod
    def weight_shapes(config: EncoderConfig) -> dict[str, Shape]:
        dense, labels = _Head._names(config)
        hidden = config.hidden_size
        return _linear_shapes(dense, hidden, hidden) | _linear_shapes(labels, config.num_labels, hidden)


def _linear(weights: Weights, *names: str) -> Linear:
    """Several of them side by side are one."""
    weight, bias = (weights.take(*(f"{name}.{part}" for name in names)) for part in ("weight", "bias"))
    return make_linear(weight, bias) if weight.device.type == "cpu" else PlainLinear(weight, bias)


class _Norm:
    def __init__(self, weights: Weights, name: str, eps: float) -> None:
        self._weight, self._bias, self._eps = weights.take(f"{name}.weight"), weights.take(f"{name}.bias"), eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


def _linear_shapes(name: str, num_out: int, num_in: int) -> dict[str, Shape]:
    return {f"{name}.weight": (num_out, num_in), f"{name}.bias": (num_out,)}


def _norm_shapes(name: str, size: int) -> dict[str, Shape]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
