"""What a head does before its layer's attention: embedding and feature become a residual stream, and Q, K and V."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import Linear
from ..parts import Parts
from .config import EagleConfig
from .weights import LAYER, EagleWeights


class Entry(Protocol):
    def fuse(self, features: Tensor) -> Tensor:
        """Residual streams of the target [T, feature_size] -> what `start` takes, [T, hidden]."""

    def start(self, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[T, hidden] each -> a residual stream [T, hidden] of its own, and [T, (heads + 2 kv_heads) * head_dim]."""


@dataclass(frozen=True, slots=True)
class TargetHead:
    """How the target makes logits of its last residual stream."""

    norm: Tensor
    """[hidden]: the weight of its last norm."""
    eps: float
    weight: Tensor
    """[vocab_size, hidden]"""


class Eagle1Entry:
    """Feature: what the target's head multiplies, so its last stream after its last norm. Embedding and feature are
    joined by `fc`, whose output goes on without a norm."""

    def __init__(self, weights: EagleWeights, parts: Parts, target_head: TargetHead) -> None:
        self._norm, self._eps = target_head.norm, target_head.eps
        self._fc = plain_linear(parts, weights.take("fc.weight"), _fc_bias(weights))
        self._qkv = plain_linear(parts, *weights.take_linear("self_attn.qkv_proj"))

    def fuse(self, features: Tensor) -> Tensor:
        return F.rms_norm(features, self._norm.shape, self._norm, self._eps)

    def start(self, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        x = self._fc(torch.cat((embedded, hidden), -1))
        return x, self._qkv(x)


class Eagle3Entry:
    """Feature: `fc` of several of the target's streams. Q, K and V read the norms of embedding and feature side by
    side, here as a sum of two products; the feature alone is the residual stream."""

    def __init__(self, config: EagleConfig, weights: EagleWeights, parts: Parts) -> None:
        hidden, eps = config.layer.hidden_size, config.layer.norm_eps
        embedding_norm = weights.take(f"{LAYER}.input_layernorm.weight")
        self._norm, self._eps = weights.take(f"{LAYER}.hidden_norm.weight"), eps
        weight, bias = weights.take_linear("self_attn.qkv_proj")
        of_embedding, of_hidden = (part.contiguous() for part in weight.split(hidden, 1))
        self._qkv_of_embedding = parts.norm_linear(embedding_norm, eps, of_embedding, None)
        self._qkv_of_hidden = parts.norm_linear(self._norm, eps, of_hidden, bias)
        fc = weights.take("fc.weight"), _fc_bias(weights)
        if config.norm_before_fc:
            self._fc = parts.norm_linear(weights.take("input_norm.weight"), eps, *fc)
        else:
            self._fc = plain_linear(parts, *fc)
        self._norm_before_residual = config.norm_before_residual

    def fuse(self, features: Tensor) -> Tensor:
        return self._fc(features)

    def start(self, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        qkv = self._qkv_of_embedding(embedded).add_(self._qkv_of_hidden(hidden))
        if self._norm_before_residual:
            return F.rms_norm(hidden, self._norm.shape, self._norm, self._eps), qkv
        return hidden.clone(), qkv


def plain_linear(parts: Parts, weight: Tensor, bias: Tensor | None) -> Linear:
    """A linear layer of what was not normalised: of a device's parts, those that take such only add, here to zeros."""
    add, out = parts.add_linear(weight, bias), weight.shape[0]

    def run(x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), out)
        add(y, x, y)
        return y

    return run


def plain_head(parts: Parts, weight: Tensor, eps: float) -> Linear:
    """x [N, in] -> fp32 logits [N, out] of x itself: the parts' head makes those of x / rms(x), so they are scaled."""
    head = parts.head(torch.ones(weight.shape[1], dtype=weight.dtype, device=weight.device), eps, weight)

    def run(x: Tensor) -> Tensor:
        return head(x).mul_(x.float().square().mean(-1, keepdim=True).add_(eps).sqrt_())

    return run


def _fc_bias(weights: EagleWeights) -> Tensor | None:
    return weights.take("fc.bias") if weights.has("fc.bias") else None
