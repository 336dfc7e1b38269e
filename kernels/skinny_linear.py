"""Linear layers of few rows, up to 64: the matrix units, fed as fast as the weights can be read.

Arguments, formula and dtypes: linear_parts. The product is turned around, out[M, N]ᵀ = W @ xᵀ, so that the long side
of a matrix instruction is rows of the weight and its short one, 16 to 64, is M. A program multiplies BLOCK_N rows of
the weight over one of SPLIT_K parts of K; loads run `num_stages` tiles of BLOCK_K columns ahead.

Split K: each program stores its partial sums in a workspace, and the last one of a tile to arrive adds all of them in
their order, so a result does not depend on who was last ("Stream-K", Osama et al., PPoPP 2023, calls it fix-up).
The arrival counter is left at 0. With programmatic dependent launch the first columns are fetched into L2 while the
kernel before still runs.
"""

# mypy: allow-incomplete-defs

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .linear_parts import LinearCall, finish, launch_options, prefetch_to_l2, weight_rows

MAX_ROWS = 64
SMALL_WEIGHT = 1 << 23
"""Elements up to which a weight is read in one wave of small programs."""
MAX_TILES = 4096
"""Of a layer whose K is split."""
WORKSPACE_FLOATS = 1 << 22
"""16 MiB of partial sums: 1024 programs of 64 × 64."""


@dataclass(frozen=True, slots=True)
class SkinnyConfig:
    block_n: int
    """Rows of the weight a program; even if gated."""
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int
    min_block_m: int = 16
    """M is padded to a power of two from here on: 16 takes the wide matrix instructions, 8 the narrow ones."""
    prefetch_k: int = 512
    """Columns fetched into L2 before the wait of programmatic dependent launch; a power of two."""

    def __str__(self) -> str:
        split = f" / {self.split_k}" if self.split_k > 1 else ""
        name = f"skinny {self.block_n} x {self.block_k}{split}, {self.num_warps} warps, {self.num_stages} stages"
        narrow = "" if self.min_block_m == 16 else f", M from {self.min_block_m}"
        return name + narrow + ("" if self.prefetch_k == 512 else f", prefetch {self.prefetch_k}")


def skinny_config(m: int, n: int, k: int, *, gated: bool) -> SkinnyConfig:
    """For M rows, N outputs and K columns."""
    num_rows = n * (1 + gated)
    if num_rows * k < SMALL_WEIGHT:
        return SkinnyConfig(32, 64, 1, 4, 6)
    if m <= 32:  # Tiles so small that all programs of one layer of an 8B model run at once.
        return SkinnyConfig(64, 64, _split_k(num_rows, 64), 4, 5 if m <= 16 else 4)
    return SkinnyConfig(128, 64, _split_k(num_rows, 128), 8, 4)  # Taller ones halve the reads of x, now as large as W.


def _split_k(num_rows: int, block_n: int) -> int:
    """Doubled until every multiprocessor of a large GPU has work; 4 costs less than a longer sum of parts."""
    num_tiles = triton.cdiv(num_rows, block_n)
    return 1 if num_tiles >= 192 else 2 if num_tiles >= 96 else 4


def launch_skinny(call: LinearCall, config: SkinnyConfig | None = None, *, pdl: bool = False) -> None:
    """Computes `call`, of M ≤ MAX_ROWS rows, on the current stream. Calls of one device share a workspace: they must
    be in order, on one stream or on streams that wait for each other. Raises ValueError if `config` needs a larger one.
    """
    m, n, k = call.shape
    config = config or skinny_config(m, n, k, gated=call.gated)
    block_m = max(config.min_block_m, triton.next_power_of_2(m))
    num_tiles = triton.cdiv(n, config.block_n // (1 + call.gated))
    if config.split_k > 1:
        _check_workspace(num_tiles, config.split_k * (config.block_n + 1) * block_m)
    partial_sums, arrivals = _workspace(call.x.device)
    _skinny_kernel[(num_tiles * config.split_k,)](
        call.x,
        call.x if call.norm_weight is None else call.norm_weight,
        call.w,
        call.x if call.bias is None else call.bias,
        call.out,
        partial_sums,
        arrivals,
        m,
        n,
        call.eps,
        K=k,
        PART_K=triton.cdiv(k, config.split_k * config.block_k) * config.block_k,
        SPLIT_K=config.split_k,
        BLOCK_M=block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        PREFETCH_K=config.prefetch_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **call.flags,
        **launch_options(call, pdl),
    )


def _check_workspace(num_tiles: int, floats_per_tile: int) -> None:
    if num_tiles > MAX_TILES or num_tiles * floats_per_tile > WORKSPACE_FLOATS:
        raise ValueError(f"no workspace for {num_tiles} tiles of {floats_per_tile} partial sums")


@functools.cache
def _workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    """(partial sums, arrivals). Made by the first call on a device, which must not be under graph capture."""
    return (
        torch.empty(WORKSPACE_FLOATS, dtype=torch.float32, device=device),
        torch.zeros(MAX_TILES, dtype=torch.int32, device=device),
    )


@triton.jit
def _tile_sums(
    x_tile,  # [BLOCK_M, BLOCK_K] pointers
    norm_tile,  # [BLOCK_K]
    w_tile,  # [BLOCK_N, BLOCK_K]
    row_mask,  # [BLOCK_M]
    begin,
    K: tl.constexpr,
    PART_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
):
    """fp32 [BLOCK_N, BLOCK_M] and [BLOCK_M]: products and sums of squares over columns begin … begin + PART_K − 1."""
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    squares = tl.zeros([BLOCK_M, BLOCK_K // 8], tl.float32)
    k = tl.arange(0, BLOCK_K)
    if NORM:  # Loaded a tile ahead by hand: Triton's pipeline leaves out loads this small.
        norm_next = tl.load(norm_tile + begin, mask=k < K - begin, other=0.0)
    for offset in tl.range(0, PART_K, BLOCK_K):
        start = begin + offset
        k_mask = k < K - start
        w = tl.load(w_tile + start, mask=k_mask[None, :], other=0.0, eviction_policy="evict_first")
        x = tl.load(x_tile + start, mask=row_mask[:, None] & k_mask[None, :], other=0.0)
        if NORM:
            norm = norm_next.to(tl.float32)
            norm_next = tl.load(norm_tile + start + BLOCK_K, mask=k < K - start - BLOCK_K, other=0.0)
            wide = x.to(tl.float32)
            squares += tl.sum(tl.reshape(wide * wide, [BLOCK_M, BLOCK_K // 8, 8]), axis=2)
            x = (wide * norm[None, :]).to(x.dtype)
        sums = tl.dot(w, tl.trans(x), sums)
    return sums, tl.sum(squares, axis=1)


@triton.jit(do_not_specialize=["M"])
def _skinny_kernel(
    x_ptr,  # [M, K]
    norm_ptr,  # [K]
    w_ptr,  # [N or 2N, K]
    bias_ptr,  # [N]
    out_ptr,  # [M, N]
    partial_ptr,  # [num_programs, BLOCK_N + 1, BLOCK_M]: sums, then squares
    arrivals_ptr,  # [num_tiles], 0
    M,
    N,
    eps,
    K: tl.constexpr,
    PART_K: tl.constexpr,  # of a program: a multiple of BLOCK_K
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PREFETCH_K: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    tile = tl.program_id(0) // SPLIT_K
    begin = tl.program_id(0) % SPLIT_K * PART_K
    rows = weight_rows(tile, N, BLOCK_N, GATED)
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    w_rows = w_ptr + rows[:, None] * K
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        lines = tl.minimum(begin + tl.arange(0, PREFETCH_K // 64) * 64, K - 1)
        prefetch_to_l2(w_rows + lines[None, :])
        tl.extra.cuda.gdc_wait()
    x_tile = x_ptr + m[:, None] * K + k[None, :]
    sums, squares = _tile_sums(
        x_tile, norm_ptr + k, w_rows + k[None, :], m < M, begin, K, PART_K, BLOCK_M, BLOCK_N, BLOCK_K, NORM
    )
    if SPLIT_K == 1:
        finish(tl.trans(sums), squares, bias_ptr, out_ptr, tile, M, N, K, eps, NORM, BIAS, GATED, ADD)
    else:
        PARTIAL: tl.constexpr = (BLOCK_N + 1) * BLOCK_M
        sums_at = n[:, None] * BLOCK_M + m[None, :]
        squares_at = BLOCK_N * BLOCK_M + m
        mine = partial_ptr + tl.program_id(0) * PARTIAL
        tl.store(mine + sums_at, sums)
        tl.store(mine + squares_at, squares)
        tl.debug_barrier()  # All threads have stored before one of them says so.
        if tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel") == SPLIT_K - 1:
            sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            squares = tl.zeros([BLOCK_M], tl.float32)
            for part in tl.static_range(SPLIT_K):
                theirs = partial_ptr + (tile * SPLIT_K + part) * PARTIAL
                sums += tl.load(theirs + sums_at, cache_modifier=".cg")
                squares += tl.load(theirs + squares_at, cache_modifier=".cg")
            finish(tl.trans(sums), squares, bias_ptr, out_ptr, tile, M, N, K, eps, NORM, BIAS, GATED, ADD)
            tl.store(arrivals_ptr + tile, 0)
