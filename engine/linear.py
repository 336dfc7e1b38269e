"""Linear layers with weights packed once for this CPU, where its libraries can.

fp32 uses MKL's packed matmul on Intel's processors and oneDNN's on others, bf16 oneDNN's: all are operators that
torch's inductor emits on x86. (On an AMD EPYC, SmolLM2's layers for 8 rows take MKL 70 ms, F.linear 60, oneDNN 25;
Intel's do best with MKL.) A pack replaces the weight, so memory does not double. In fp32 the results for a row do not
depend on the number of rows, once there are a few, which is what makes a token independent of its batch; F.linear's do.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
"""[T, in] -> [T, out], in the weight's dtype."""

MKL_ROWS_HINT = 512
"""The packing that is fast for long prompts is as fast as any for few rows; packed for 8 it is not."""

MANY_ROWS = 8
"""From at most this many rows on, results for a row do not depend on their number. How many less will do differs by
library, processor and shape."""
CPU_INFO = Path("/proc/cpuinfo")


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest layer for `weight` [out, in] on this machine; the caller drops its own reference to it."""
    has_mkl = _has("mkl", "_mkl_linear", "_mkl_reorder_linear_weight")
    has_onednn = _has("mkldnn", "_linear_pointwise", "_reorder_linear_weight")
    if weight.dtype == torch.float32 and has_mkl and (is_intel() or not has_onednn):
        return MklLinear(weight, bias)
    if has_onednn and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bf16())):
        return OneDnnLinear(weight, bias)
    return PlainLinear(weight, bias)


@cache
def is_intel() -> bool:
    return CPU_INFO.exists() and "GenuineIntel" in CPU_INFO.read_text()


@cache
def has_bf16() -> bool:
    """Whether oneDNN multiplies bf16 on this processor, which without AVX-512 it does not."""
    return bool(_has("mkldnn", "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _has(library: str, *names: str) -> bool:
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return available and all(hasattr(getattr(torch.ops, library), name) for name in names)


def rows_needed(multiply: Linear, into: int) -> int:
    """The fewest rows that `multiply`, of fp32 [n, into], computes as it computes many."""
    x = torch.linspace(-1, 1, MANY_ROWS * into).view(MANY_ROWS, into)
    expected = multiply(x)
    differing = [n for n in range(1, MANY_ROWS) if not torch.equal(multiply(x[:n]), expected[:n])]
    return max(differing, default=0) + 1


def with_rows(multiply: Linear, x: Tensor, num_rows: int) -> Tensor:
    """`multiply(x)`, computed with at least so many rows."""
    missing = num_rows - x.shape[0]
    if missing <= 0:
        return multiply(x)
    return multiply(torch.cat((x, x.new_zeros(missing, x.shape[1]))))[: x.shape[0]]


class PlainLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class MklLinear:
    """fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        out, into = weight.shape
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), MKL_ROWS_HINT)
        self.shape_only = torch.empty(1).expand(out, into)  # the operator reads the sizes of the original, no more
        self.bias = bias
        self.operator = torch.ops.mkl._mkl_linear.default
        self.min_rows = rows_needed(self._multiply, into)

    def __call__(self, x: Tensor) -> Tensor:
        return with_rows(self._multiply, x, self.min_rows)

    def _multiply(self, x: Tensor) -> Tensor:
        return self.operator(x.contiguous(), self.packed, self.shape_only, self.bias, x.shape[0])


class OneDnnLinear:
    """fp32 or bf16; in bf16 results may depend on the number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.bias = bias
        self.operator = torch.ops.mkldnn._linear_pointwise.default
        self.min_rows = rows_needed(self._multiply, weight.shape[1]) if weight.dtype == torch.float32 else 1

    def __call__(self, x: Tensor) -> Tensor:
        return with_rows(self._multiply, x, self.min_rows)

    def _multiply(self, x: Tensor) -> Tensor:
        return self.operator(x, self.packed, self.bias, "none", [], "")
