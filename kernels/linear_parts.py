"""What the linear kernels of small batches share: their arguments, and the device code around the products.

    y = f(x) @ Wᵀ + bias,  f = identity or RMSNorm;  out = y | silu(gate) · up of y | residual + y

`x` [M, K] and `w` [N, K] are bf16 or fp16 and contiguous, products are summed in fp32, and what is stored is rounded
once. A gated layer's weight holds the gate's rows, then as many of `up`, and has half as many outputs as rows.

RMSNorm is y = (x · norm_weight) @ Wᵀ · rsqrt(mean x² + eps): its statistic is summed while x is read for the product,
and applied to the sum.

Programmatic dependent launch (CUDA programming guide, "Programmatic Dependent Launch and Synchronization"): a kernel
is started while the one before it drains, fetches weights, which nobody writes, and waits (`gdc_wait`) before it
touches anything else. Every program waits, so a kernel ends after all before it.
"""

# mypy: allow-incomplete-defs

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearCall:
    """A checked call. N is the number of outputs, `w` has 2N rows if `gated`, else N."""

    x: Tensor
    w: Tensor
    out: Tensor
    """[M, N]"""
    norm_weight: Tensor | None = None
    eps: float = 0.0
    bias: Tensor | None = None
    """[N]. Not with `gated`."""
    gated: bool = False
    residual: Tensor | None = None
    """[M, N], of x's dtype. It may be `out`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, N (outputs), K."""
        return *self.out.shape, self.x.shape[1]

    @property
    def flags(self) -> dict[str, bool]:
        """Compile-time switches of either kernel."""
        return {
            "NORM": self.norm_weight is not None,
            "BIAS": self.bias is not None,
            "GATED": self.gated,
            "ADD": self.residual is not None,
        }


def launch_options(call: LinearCall, pdl: bool) -> dict[str, bool]:
    """Of programmatic dependent launch; Triton's interpreter has none."""
    return {"PDL": True, "launch_pdl": True} if pdl and call.x.is_cuda else {"PDL": False}


def ref_linear(call: LinearCall) -> Tensor:
    """Computes the call in fp32 and stores it in `call.out`."""
    x = call.x.float()
    if call.norm_weight is not None:
        x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + call.eps) * call.norm_weight.float()
    y = x @ call.w.float().T
    if call.bias is not None:
        y = y + call.bias.float()
    if call.gated:
        gate, up = y.chunk(2, dim=-1)
        y = torch.nn.functional.silu(gate) * up
    if call.residual is not None:
        y = y + call.residual.float()
    return call.out.copy_(y)


@triton.jit
def weight_rows(i, tile, N, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    """int64: rows of the weight that are the `i`-th, 0 … BLOCK_N − 1, of a tile; half gate and half `up` rows if GATED.
    Past the last one comes the last one again: those sums are not stored."""
    if GATED:
        HALF: tl.constexpr = BLOCK_N // 2
        output = tl.minimum(tile * HALF + i % HALF, N - 1)
        rows = tl.where(i < HALF, output, N + output)
    else:
        rows = tl.minimum(tile * BLOCK_N + i, N - 1)
    return rows.to(tl.int64)


@triton.jit
def finish(sums, squares, bias_ptr, residual_ptr, out_ptr, tile, M, N, K, eps, NORM, BIAS, GATED, ADD):
    """Stores a tile of outputs from `sums` [BLOCK_M, BLOCK_N], the products of x (· norm_weight), and `squares`
    [BLOCK_M], the sum of x² over all of K."""
    BLOCK_M: tl.constexpr = sums.shape[0]
    BLOCK_N: tl.constexpr = sums.shape[1]
    if NORM:
        sums *= tl.rsqrt(squares / K + eps)[:, None]
    if GATED:
        halves = tl.permute(tl.reshape(sums, [BLOCK_M, 2, BLOCK_N // 2]), [0, 2, 1])
        gate, up = tl.split(halves)  # [BLOCK_M, BLOCK_N // 2] each
        y = gate * tl.sigmoid(gate) * up
        n = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    else:
        y = sums
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if BIAS:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    m = tl.arange(0, BLOCK_M)
    place = m[:, None].to(tl.int64) * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if ADD:
        y += tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)
