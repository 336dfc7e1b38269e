"""Linear layers of one to four rows: dot products without matrix units, as fast as the weights can be read.

Arguments, formula and dtypes: linear_parts. A program multiplies BLOCK_N rows of the weight, BLOCK_K columns at a
time, which it holds in registers; the columns after them are on their way meanwhile. Each thread sums eight
neighbouring columns and its own part of K; threads are summed once, at the end. With programmatic dependent launch
the first columns are loaded while the kernel before still runs.
"""

# mypy: allow-incomplete-defs

from dataclasses import dataclass

import triton
import triton.language as tl

from .linear_parts import LinearCall, finish, launch_options, weight_rows

MAX_ROWS = 4
LARGE_WEIGHT = 1 << 23
"""Elements from where on a weight takes more than one wave of programs, and few columns are too little for one."""


@dataclass(frozen=True, slots=True)
class GemvConfig:
    block_n: int
    """Rows of the weight a program; even if gated."""
    block_k: int
    num_warps: int

    def __str__(self) -> str:
        return f"gemv {self.block_n} x {self.block_k}, {self.num_warps} warps"


def gemv_config(m: int, n: int, k: int, *, gated: bool) -> GemvConfig:
    """For M rows, N outputs and K columns."""
    block_k = min(2048, triton.next_power_of_2(k))
    large = n * k * (1 + gated) > LARGE_WEIGHT
    return GemvConfig(8 if large and k <= 1024 else 4, block_k, 4)


def launch_gemv(call: LinearCall, config: GemvConfig | None = None, *, pdl: bool = False) -> None:
    """Computes `call`, of M ≤ MAX_ROWS rows, on the current stream."""
    m, n, k = call.shape
    config = config or gemv_config(m, n, k, gated=call.gated)
    num_programs = triton.cdiv(n, config.block_n // (1 + call.gated))
    _gemv_kernel[(num_programs,)](
        call.x,
        call.x if call.norm_weight is None else call.norm_weight,
        call.w,
        call.x if call.bias is None else call.bias,
        call.x if call.residual is None else call.residual,
        call.out,
        m,
        n,
        call.eps,
        K=k,
        BLOCK_M=triton.next_power_of_2(m),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        **call.flags,
        **launch_options(call, pdl),
    )


@triton.jit
def _add_products(sums, squares, w, x_tile, norm_tile, m_mask, k_mask, NORM: tl.constexpr):
    """(`sums` [BLOCK_M, BLOCK_N, BLOCK_K / 8], `squares` [BLOCK_M, 1, BLOCK_K / 8]) with the products of a tile and
    the squares of its x added, eight neighbours to an element."""
    BLOCK_M: tl.constexpr = sums.shape[0]
    BLOCK_N: tl.constexpr = sums.shape[1]
    EIGHTHS: tl.constexpr = sums.shape[2]
    mask = m_mask if k_mask is None else m_mask & k_mask
    x = tl.load(x_tile, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        squares += tl.sum(tl.reshape(x * x, [BLOCK_M, 1, EIGHTHS, 8]), axis=3)
        x *= tl.load(norm_tile, mask=k_mask, other=None if k_mask is None else 0.0).to(tl.float32)
    sums += tl.sum(tl.reshape(x * w.to(tl.float32), [BLOCK_M, BLOCK_N, EIGHTHS, 8]), axis=3)
    return sums, squares


@triton.jit
def _gemv_kernel(
    x_ptr,  # [M, K]
    norm_ptr,  # [K]
    w_ptr,  # [N or 2N, K]
    bias_ptr,  # [N]
    residual_ptr,  # [M, N]
    out_ptr,  # [M, N]
    M,
    N,
    eps,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    tile = tl.program_id(0)
    rows = weight_rows(tl.arange(0, BLOCK_N), tile, N, BLOCK_N, GATED)
    m = tl.arange(0, BLOCK_M)[:, None, None]
    k = tl.arange(0, BLOCK_K)[None, None, :]
    m_mask = m < M
    x_tile = x_ptr + m * K + k  # [BLOCK_M, 1, BLOCK_K]
    norm_tile = norm_ptr + k  # [1, 1, BLOCK_K]
    w_tile = w_ptr + rows[None, :, None] * K + k  # [1, BLOCK_N, BLOCK_K]
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    w = tl.load(w_tile, mask=k < K, other=0.0, eviction_policy="evict_first")
    if PDL:
        tl.extra.cuda.gdc_wait()
    sums = tl.zeros([BLOCK_M, BLOCK_N, BLOCK_K // 8], tl.float32)
    squares = tl.zeros([BLOCK_M, 1, BLOCK_K // 8], tl.float32)
    for start in range(0, K - BLOCK_K, BLOCK_K):
        next_mask = k < K - start - BLOCK_K
        w_next = tl.load(w_tile + start + BLOCK_K, mask=next_mask, other=0.0, eviction_policy="evict_first")
        tl.debug_barrier()  # Else the assembler moves the load behind the products, where nothing hides it.
        sums, squares = _add_products(sums, squares, w, x_tile + start, norm_tile + start, m_mask, None, NORM)
        w = w_next
    LAST: tl.constexpr = (K - 1) // BLOCK_K * BLOCK_K
    sums, squares = _add_products(sums, squares, w, x_tile + LAST, norm_tile + LAST, m_mask, k < K - LAST, NORM)
    finish(
        tl.sum(sums, axis=2),
        tl.sum(tl.reshape(squares, [BLOCK_M, BLOCK_K // 8]), axis=1),
        bias_ptr,
        residual_ptr,
        out_ptr,
        tile,
        M,
        N,
        K,
        eps,
        NORM,
        BIAS,
        GATED,
        ADD,
    )
