"""The gate of a SwiGLU feed-forward: out = silu(gate) · up, silu(g) = g / (1 + exp(−g)).

x [T, 2I] holds gate and up side by side, as the fused projection leaves them; out [T, I]. Both are bf16, fp16 or fp32,
of one dtype, rows contiguous and at any stride. I is a multiple of 16. Arithmetic is fp32, the result rounded once.

With `pdl` the launch overlaps the end of the one before it (programmatic dependent launch).
Source of the method: Shazeer, "GLU variants improve Transformer", 2020.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches


class SiluConfig(NamedTuple):
    block: int
    """Numbers of a row that a program makes."""
    num_warps: int


FEW_NUMBERS = SiluConfig(block=512, num_warps=2)
MANY_NUMBERS = SiluConfig(block=1024, num_warps=4)
FEW = 2**20
"""Up to so many numbers to make, latency counts, and small programs spread them over the GPU."""


def silu_config(num_rows: int, size: int) -> SiluConfig:
    return FEW_NUMBERS if num_rows * size <= FEW else MANY_NUMBERS


def ref_silu_mul(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(x.dtype)


@triton.jit
def _silu_mul_kernel(x, out, x_stride, out_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    NUM_BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // NUM_BLOCKS).to(tl.int64)
    column = tl.program_id(0) % NUM_BLOCKS * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = column < SIZE
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    gate = tl.load(x + row * x_stride + column, mask=mask, other=0).to(tl.float32)
    up = tl.load(x + row * x_stride + SIZE + column, mask=mask, other=0).to(tl.float32)
    product = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * out_stride + column, product.to(out.dtype.element_ty), mask=mask)


def silu_mul(x: Tensor, out: Tensor | None = None, *, pdl: bool = False, config: SiluConfig | None = None) -> Tensor:
    """[T, 2I] -> [T, I], in `out` if given. Raises ValueError on shapes, strides or dtypes it does not take."""
    _check(x)
    num_rows, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(num_rows, size, dtype=x.dtype, device=x.device) if out is None else out
    if out.shape != (num_rows, size) or out.dtype != x.dtype or out.stride(1) != 1:
        raise ValueError(f"out must be {x.dtype} [{num_rows}, {size}] with contiguous rows")
    if not launches(x):
        return out.copy_(ref_silu_mul(x))
    if num_rows == 0:
        return out
    block, num_warps = config or silu_config(num_rows, size)
    pdl = pdl and x.is_cuda
    _silu_mul_kernel[(num_rows * triton.cdiv(size, block),)](
        x,
        out,
        x.stride(0),
        out.stride(0),
        SIZE=size,
        BLOCK=block,
        PDL=pdl,
        num_warps=num_warps,
        launch_pdl=pdl,
    )
    return out


def _check(x: Tensor) -> None:
    if x.dim() != 2 or x.shape[1] % 32 or x.stride(1) != 1:
        raise ValueError(f"x must be [T, 2I] with contiguous rows and I a multiple of 16, not {tuple(x.shape)}")
