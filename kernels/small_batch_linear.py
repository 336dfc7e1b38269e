"""Linear layers of decode steps, M ≤ 16 rows, with what stands around them in a transformer block.

    norm_linear        out = rms_norm(x) @ Wᵀ + bias                 (q, k, v)
    norm_gated_linear  out = silu(gate) · up of rms_norm(x) @ Wᵀ     (gate, up)
    add_linear         residual + x @ Wᵀ + bias, in place or not     (o, down)
    norm_head          logits = rms_norm(x) @ Wᵀ, in fp32            (lm_head)

rms_norm(x) = x · rsqrt(mean x² + eps) · norm_weight. Tensors are contiguous bf16 or fp16, all of one dtype, `w` is
[N, K] as in torch.nn.Linear; sums and the norm's statistic are fp32, and a result is rounded once. In the matrix units
(M > 4) x · norm_weight is rounded to x's dtype, as it is wherever the norm is a layer of its own.

Such a step reads every weight once for a handful of multiply-adds, so a kernel is as good as its loads: gemv_linear
up to 4 rows, fragment_linear above. `pdl` overlaps a call with the end of the one before on its stream (linear_parts);
it needs compute capability 9.0, and every kernel that reads or overwrites what an earlier one touches must wait, as
these do. All can be captured in a CUDA graph once each has been called outside of one.
"""

import torch
from torch import Tensor

from .dispatch import launches
from .fragment_linear import MAX_ROWS, launch_fragment
from .gemv_linear import MAX_ROWS as MAX_GEMV_ROWS
from .gemv_linear import launch_gemv
from .linear_parts import LinearCall, ref_linear

DTYPES = (torch.bfloat16, torch.float16)
FEW_ROWS = 4
SMALL_LAYER_ROWS, SMALL_LAYER = 16, 2 << 20
"""Elements of a weight."""


def prefers_small_batch(m: int, n: int, k: int, dtype: torch.dtype) -> bool:
    """Whether these kernels beat cuBLAS, and separate kernels around it, for M rows, N of the weight and K columns.

    Measured on an H100 in whole steps: up to 4 rows always; up to 16 where a layer is so small that launching it costs
    more than reading it. In a step of 8 rows of Llama-3.1-8B's shape, cuBLAS's large layers are 0.3 ms faster, though
    these are as fast alone."""
    if dtype not in DTYPES or k % 8 or m < 1:
        return False
    return m <= FEW_ROWS or (m <= SMALL_LAYER_ROWS and n * k <= SMALL_LAYER)


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """rms_norm(x) @ Wᵀ + bias: [M, N] of x's dtype for `x` [M, K], `norm_weight` [K], `w` [N, K] and `bias` [N].

    Raises ValueError on a wrong shape or layout, TypeError on a wrong dtype (all four functions do)."""
    out = x.new_empty(len(x), len(w)) if out is None else out
    return _compute(LinearCall(x, w, out, norm_weight, eps, bias), pdl)


def norm_gated_linear(
    x: Tensor, norm_weight: Tensor, eps: float, w: Tensor, *, out: Tensor | None = None, pdl: bool = False
) -> Tensor:
    """silu(gate) · up: [M, I] of x's dtype for `x` [M, K], `norm_weight` [K] and `w` [2I, K], the gate's rows first."""
    if len(w) % 2:
        raise ValueError(f"a gated weight of {len(w)} rows")
    out = x.new_empty(len(x), len(w) // 2) if out is None else out
    return _compute(LinearCall(x, w, out, norm_weight, eps, gated=True), pdl)


def add_linear(
    x: Tensor, w: Tensor, residual: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None, pdl: bool = False
) -> Tensor:
    """residual + x @ Wᵀ + bias: in `out` [M, N], or in `residual` itself, for `x` [M, K] and `w` [N, K]."""
    return _compute(LinearCall(x, w, residual if out is None else out, bias=bias, residual=residual), pdl)


def norm_head(
    x: Tensor, norm_weight: Tensor, eps: float, w: Tensor, *, out: Tensor | None = None, pdl: bool = False
) -> Tensor:
    """rms_norm(x) @ Wᵀ: fp32 [M, V], not rounded to x's dtype, for `x` [M, K], `norm_weight` [K] and `w` [V, K]."""
    out = x.new_empty(len(x), len(w), dtype=torch.float32) if out is None else out
    if out.dtype != torch.float32:
        raise TypeError(f"logits are fp32, not {out.dtype}")
    return _compute(LinearCall(x, w, out, norm_weight, eps), pdl)


def _compute(call: LinearCall, pdl: bool) -> Tensor:
    _check(call)
    m, n, _ = call.shape
    if not launches(call.x):
        return ref_linear(call)
    if m and n:
        launch = launch_gemv if m <= MAX_GEMV_ROWS else launch_fragment
        launch(call, pdl=pdl)
    return call.out


def _check(call: LinearCall) -> None:
    x, w = call.x, call.w
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1] or not x.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(w.shape)}")
    if len(x) > MAX_ROWS:
        raise ValueError(f"{len(x)} rows, of at most {MAX_ROWS}")
    num_outputs = len(w) // 2 if call.gated else len(w)
    _check_tensor("out", call.out, (len(x), num_outputs))
    _check_tensor("norm_weight", call.norm_weight, (x.shape[1],))
    _check_tensor("bias", call.bias, (len(w),))
    _check_tensor("residual", call.residual, (len(x), num_outputs))
    _check_tensor("x", x, x.shape)
    _check_tensor("weight", w, w.shape)
    if x.dtype not in DTYPES or call.out.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"x {x.dtype}, out {call.out.dtype}")
    if any(
        tensor is not None and tensor.dtype != x.dtype for tensor in (w, call.norm_weight, call.bias, call.residual)
    ):
        raise TypeError(f"weights of another dtype than x, {x.dtype}")


def _check_tensor(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and (tensor.shape != shape or not tensor.is_contiguous()):
        raise ValueError(f"{name} {tuple(tensor.shape)}, strides {tensor.stride()}: not a contiguous {tuple(shape)}")
