"""A model's parts on a GPU: kernels of our own for few rows, where reading the weights is all; cuBLAS for many."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.add_rms_norm import rms_norm
from ...kernels.silu_mul import silu_mul
from ...kernels.small_batch_linear import add_linear, norm_gated_linear, norm_head, norm_linear, prefers_small_batch
from ..config import ModelConfig
from ..linear import Linear
from ..parts import AddLinear


@dataclass(frozen=True, slots=True)
class HeadNorm:
    q_norm: Tensor
    k_norm: Tensor
    eps: float


class CudaParts:
    """`pdl`: the kernels of a step overlap where they follow one another (programmatic dependent launch).

    Not so the first one made, which begins the first layer: kernels read what a step has prepared (rows, positions,
    block tables) before they wait for the kernels ahead, so an ordinary launch must come between.
    """

    def __init__(self, *, pdl: bool) -> None:
        self._pdl = pdl
        self._is_first = True

    def norm_linear(self, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Linear:
        is_small, pdl = _chooser(weight), self._pdl and not self._is_first
        self._is_first = False

        def run(x: Tensor) -> Tensor:
            if is_small(len(x)):
                return norm_linear(x, norm, eps, weight, bias, pdl=pdl)
            return F.linear(rms_norm(x, norm, eps, pdl=pdl), weight, bias)

        return run

    def gated_linear(self, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Linear:
        is_small = _chooser(weight)

        def run(x: Tensor) -> Tensor:
            if bias is None and is_small(len(x)):
                return norm_gated_linear(x, norm, eps, weight, pdl=self._pdl)
            return silu_mul(F.linear(rms_norm(x, norm, eps, pdl=self._pdl), weight, bias), pdl=self._pdl)

        return run

    def add_linear(self, weight: Tensor, bias: Tensor | None) -> AddLinear:
        is_small = _chooser(weight)

        def run(x: Tensor, y: Tensor, into: Tensor) -> None:
            if is_small(len(x)):
                add_linear(y, weight, x, bias, out=into, pdl=self._pdl)
            elif bias is None:
                torch.addmm(x, y, weight.t(), out=into)  # cuBLAS adds as it writes: measured at no cost
            else:
                torch.add(x, F.linear(y, weight, bias), out=into)

        return run

    def head(self, norm: Tensor, eps: float, weight: Tensor) -> Linear:
        is_small, multiply = _chooser(weight), _multiply_to_fp32(weight)

        def run(x: Tensor) -> Tensor:
            if is_small(len(x)):
                return norm_head(x, norm, eps, weight, pdl=self._pdl)
            return multiply(rms_norm(x, norm, eps, pdl=self._pdl))

        return run

    def norm(self, weight: Tensor, eps: float) -> Linear:
        return lambda x: rms_norm(x, weight, eps)

    def head_norm(self, config: ModelConfig, q_norm: Tensor, k_norm: Tensor) -> HeadNorm:
        return HeadNorm(q_norm, k_norm, config.norm_eps)


def _chooser(weight: Tensor) -> Callable[[int], bool]:
    """Whether so many rows go to our kernels."""
    out, into = weight.shape
    return lambda num_rows: prefers_small_batch(num_rows, out, into, weight.dtype)


def _multiply_to_fp32(weight: Tensor) -> Linear:
    """x [N, in] -> fp32 [N, out], from fp32 sums that are never rounded to the weight's dtype."""
    if weight.is_cuda and weight.dtype != torch.float32:
        return lambda x: torch.mm(x, weight.t(), out_dtype=torch.float32)
    return lambda x: F.linear(x.float(), weight.float())
