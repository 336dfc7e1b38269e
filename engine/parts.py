"""What a model is built of, besides attention: each part does as much at once as its device has a kernel for.

A residual stream x [T, hidden] runs through the model; parts read it normalised, or add to it.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig
from .linear import Linear, make_linear
from .norm import RmsNorm

AddLinear = Callable[[Tensor, Tensor, Tensor], None]
"""(x [T, out], y [T, in], into [T, out]): into = x + linear(y). `into` may be x."""


class Parts(Protocol):
    """Makes a device's parts from weights. `norm` is the weight of the RMS norm before a linear layer, `weight`
    [out, in], `bias` [out] or None."""

    def norm_linear(self, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Linear:
        """x -> linear(rms_norm(x))."""

    def gated_linear(self, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Linear:
        """x -> silu(gate) · up, where the rows of `weight` give gate, then up, of rms_norm(x)."""

    def add_linear(self, weight: Tensor, bias: Tensor | None) -> AddLinear: ...

    def head(self, norm: Tensor, eps: float, weight: Tensor) -> Linear:
        """x -> logits of rms_norm(x), fp32, from fp32 sums."""

    def norm(self, weight: Tensor, eps: float) -> Linear:
        """x -> rms_norm(x), of few rows now and then."""

    def head_norm(self, config: ModelConfig, q_norm: Tensor, k_norm: Tensor) -> Any:
        """What this device's attention takes to normalise each head of Q and K; the weights are [head_dim]."""


class CpuParts:
    def norm_linear(self, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Linear:
        normalize, linear = RmsNorm(norm, eps), make_linear(weight, bias)
        return lambda x: linear(normalize(x))

    def gated_linear(self, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Linear:
        linear = self.norm_linear(norm, eps, weight, bias)

        def gated(x: Tensor) -> Tensor:
            gate, up = linear(x).chunk(2, -1)
            return F.silu(gate).mul_(up)

        return gated

    def add_linear(self, weight: Tensor, bias: Tensor | None) -> AddLinear:
        linear = make_linear(weight, bias)

        def add(x: Tensor, y: Tensor, into: Tensor) -> None:
            torch.add(x, linear(y), out=into)

        return add

    def head(self, norm: Tensor, eps: float, weight: Tensor) -> Linear:
        normalize, linear = RmsNorm(norm, eps), make_linear(weight.float())
        return lambda x: linear(normalize(x).float())

    def norm(self, weight: Tensor, eps: float) -> Linear:
        return RmsNorm(weight, eps)

    def head_norm(self, config: ModelConfig, q_norm: Tensor, k_norm: Tensor) -> RmsNorm:
        heads = (q_norm.expand(config.num_heads, -1), k_norm.expand(config.num_kv_heads, -1))
        return RmsNorm(torch.cat(heads), config.norm_eps)
