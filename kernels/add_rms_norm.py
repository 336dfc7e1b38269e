"""RMS normalisation, alone and fused with the residual addition before it.

    rms_norm:      out = x / sqrt(mean(x²) + eps) · weight
    add_rms_norm:  residual = residual + x, rounded to its dtype once; then the norm of that sum

x, residual, out [T, H]: bf16, fp16 or fp32, all of one dtype, rows contiguous and at any stride; weight [H] of any of
these dtypes. H is a multiple of 16, which keeps accesses 16 bytes wide. Arithmetic is fp32 and the result is rounded
once. A program does a row, which it holds in registers: each number is read once.

With `pdl` the launch overlaps the end of the one before it (programmatic dependent launch): `weight` is read ahead, and
must have been written earlier than by that one.
Source of the method: Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches


class NormConfig(NamedTuple):
    num_warps: int


FEW_ROWS = 512
"""Up to here latency counts, and a row is spread over many warps."""
NUMBERS_A_THREAD_OF_FEW_ROWS = 8
NUMBERS_A_THREAD_OF_MANY_ROWS = 32


def norm_config(num_rows: int, hidden_size: int) -> NormConfig:
    numbers_a_thread = NUMBERS_A_THREAD_OF_FEW_ROWS if num_rows <= FEW_ROWS else NUMBERS_A_THREAD_OF_MANY_ROWS
    num_warps = triton.next_power_of_2(hidden_size) // (32 * numbers_a_thread)
    return NormConfig(num_warps=min(max(num_warps, 1), 16))


def ref_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse * weight.float()).to(x.dtype)


def ref_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Adds to `residual` in place, as `add_rms_norm` does."""
    residual.copy_(residual.float() + x.float())
    return ref_rms_norm(residual, weight, eps)


@triton.jit
def _rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    x_stride,
    residual_stride,
    out_stride,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)  # [BLOCK]
    mask = column < HIDDEN
    scale = tl.load(weight + column, mask=mask, other=0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    value = tl.load(x + row * x_stride + column, mask=mask, other=0).to(tl.float32)
    if ADD:
        place = residual + row * residual_stride + column
        rounded = (value + tl.load(place, mask=mask, other=0).to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(place, rounded, mask=mask)
        value = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + eps)
    normed = value * inverse * scale
    tl.store(out + row * out_stride + column, normed.to(out.dtype.element_ty), mask=mask)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor | None = None,
    *,
    pdl: bool = False,
    config: NormConfig | None = None,
) -> Tensor:
    """[T, H], in `out` if given (which may be `x`). Raises ValueError on shapes, strides or dtypes it does not take."""
    _check(x, weight)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    _check_alike("out", out, x)
    if not launches(x):
        return out.copy_(ref_rms_norm(x, weight, eps))
    _launch(x, None, weight, eps, out, pdl, config)
    return out


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor | None = None,
    *,
    pdl: bool = False,
    config: NormConfig | None = None,
) -> Tensor:
    """Adds x to `residual` in place and returns the norm of the sum, [T, H], in `out` if given (which may be `x`).
    Raises ValueError on shapes, strides or dtypes it does not take."""
    _check(x, weight)
    _check_alike("residual", residual, x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    _check_alike("out", out, x)
    if not launches(x):
        return out.copy_(ref_add_rms_norm(x, residual, weight, eps))
    _launch(x, residual, weight, eps, out, pdl, config)
    return out


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    out: Tensor,
    pdl: bool,
    config: NormConfig | None,
) -> None:
    num_rows, hidden_size = x.shape
    if num_rows == 0:
        return
    pdl = pdl and x.is_cuda
    _rms_norm_kernel[(num_rows,)](
        x,
        residual,
        weight,
        out,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        eps,
        HIDDEN=hidden_size,
        BLOCK=triton.next_power_of_2(hidden_size),
        ADD=residual is not None,
        PDL=pdl,
        num_warps=(config or norm_config(num_rows, hidden_size)).num_warps,
        launch_pdl=pdl,
    )


def _check(x: Tensor, weight: Tensor) -> None:
    if x.dim() != 2 or x.shape[1] % 16 or x.stride(1) != 1:
        raise ValueError(f"x must be [T, H] with contiguous rows and H a multiple of 16, not {tuple(x.shape)}")
    if weight.shape != x.shape[1:] or not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous [{x.shape[1]}], not {tuple(weight.shape)}")


def _check_alike(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.shape != x.shape or tensor.dtype != x.dtype or tensor.stride(1) != 1:
        raise ValueError(f"{name} must be {x.dtype} {tuple(x.shape)} with contiguous rows")
