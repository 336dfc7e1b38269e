"""Linear layers with weights packed once for this CPU, where its libraries can.

fp32 uses MKL's packed matmul, bf16 oneDNN's: both are operators that torch's inductor emits on x86. A pack replaces
the weight, so memory does not double. MKL's results for a row do not depend on the number of rows, once there are a
few, which is what makes a token independent of its batch; F.linear's do.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
"""[T, in] -> [T, out], in the weight's dtype."""

MKL_ROWS_HINT = 512
"""The packing that is fast for long prompts is as fast as any for few rows; packed for 8 it is not."""

MANY_ROWS = 8
"""From at most this many rows on, results for a row do not depend on their number. How many less will do differs by
processor and shape: one on most, two for small layers, four for all on others."""


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest layer for `weight` [out, in] on this machine; the caller drops its own reference to it."""
    if weight.dtype == torch.float32 and _has("mkl", "_mkl_linear", "_mkl_reorder_linear_weight"):
        return MklLinear(weight, bias)
    if weight.dtype == torch.bfloat16 and _has("mkldnn", "_linear_pointwise", "_reorder_linear_weight"):
        return OneDnnLinear(weight, bias)
    return PlainLinear(weight, bias)


def _has(library: str, *names: str) -> bool:
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return available and all(hasattr(getattr(torch.ops, library), name) for name in names)


class PlainLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class MklLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        out, into = weight.shape
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), MKL_ROWS_HINT)
        self.shape_only = torch.empty(1).expand(out, into)  # the operator reads the sizes of the original, no more
        self.bias = bias
        self.multiply = torch.ops.mkl._mkl_linear.default
        self.min_rows = self._min_rows(into)

    def __call__(self, x: Tensor) -> Tensor:
        num_rows = x.shape[0]
        if num_rows < self.min_rows:
            return self._multiply(torch.cat((x, x.new_zeros(self.min_rows - num_rows, x.shape[1]))))[:num_rows]
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        return self.multiply(x.contiguous(), self.packed, self.shape_only, self.bias, x.shape[0])

    def _min_rows(self, into: int) -> int:
        """The fewest rows that are computed as many are."""
        x = torch.linspace(-1, 1, MANY_ROWS * into).view(MANY_ROWS, into)
        expected = self._multiply(x)
        differing = [n for n in range(1, MANY_ROWS) if not torch.equal(self._multiply(x[:n]), expected[:n])]
        return max(differing, default=0) + 1


class OneDnnLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.bias = bias
        self.multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.packed, self.bias, "none", [], "")
