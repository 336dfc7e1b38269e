"""Linear layers of few rows, up to 16: the matrix units, fed from registers as the weights come out of memory.

Arguments, formula and dtypes: linear_parts. The product is turned around, out[M, N]ᵀ = W @ xᵀ, and made of 16 × 8 × 16
matrix instructions. In one, lane 4g + t of a warp holds columns 2t, 2t + 1, 2t + 8 and 2t + 9 of row g (PTX ISA,
"Matrix Fragments for mma.m16n8k16"): 4 bytes here and there, for which operands otherwise go through shared memory.
But a sum over columns may take them in any order, if both operands take the same. So the lane loads 16 bytes, columns
8t … 8t + 7 of 32, and these *are* its fragments of two instructions. Neither operand goes through shared memory, a
warp needs few registers, and so many warps wait for memory at a time that those that multiply are not missed.

A program's warps form a grid: `row_warps` parts of its rows of the weight, times parts of the columns, whose sums are
added at the end. Warps that differ in their rows alone read the same x, together, and most of it from L1. With
programmatic dependent launch the first columns are loaded while the kernel before still runs; dependents are started
after the last load, for started before they take the room of this kernel's own later programs.
"""

# mypy: allow-incomplete-defs

from dataclasses import dataclass

import triton
import triton.language as tl

from .linear_parts import LinearCall, finish, launch_options, weight_rows

MAX_ROWS = 16
SMALL_WEIGHT = 1 << 23
"""Elements up to which all of a weight is read in one wave of programs."""


@dataclass(frozen=True, slots=True)
class FragmentConfig:
    block_n: int
    """Rows of the weight a program: 16 or more for each of `row_warps`."""
    chunks: int
    """Of 32 columns, that a warp holds at a time."""
    num_warps: int
    row_warps: int = 1
    early: bool = False
    """Dependents are started at once, not after the last load (with programmatic dependent launch)."""

    def __str__(self) -> str:
        warps = f"{self.num_warps} warps" if self.row_warps == 1 else f"{self.row_warps} x {self.num_warps} warps"
        return f"fragment {self.block_n} x {self.chunks * 32}, {warps}" + (", early" if self.early else "")


def fragment_config(m: int, n: int, k: int, *, gated: bool) -> FragmentConfig:
    """For M rows, N outputs and K columns. Between memory and a multiprocessor should be some 64 KB: of several
    programs where there are enough of them, else of more warps."""
    num_rows = n * (1 + gated)
    if num_rows * k < SMALL_WEIGHT:  # All columns in one go.
        return FragmentConfig(16, 4 if k <= 1024 or m > 8 else 8, 8)
    if num_rows >= 16384:
        tall = m > 8 or k <= 1024  # x is read less often; and of a short row the last step leaves less empty.
        return FragmentConfig(32, 4, 4, row_warps=2) if tall else FragmentConfig(16, 4, 4)
    few = num_rows <= 4224  # Two tiles of 16 for each multiprocessor of a large GPU.
    if m <= 8:
        return FragmentConfig(16, 8 if few else 4, 8)
    return FragmentConfig(32, 4, 16 if few else 8, row_warps=2)  # More rows a program, lest x is read as often as W.


def launch_fragment(call: LinearCall, config: FragmentConfig | None = None, *, pdl: bool = False) -> None:
    """Computes `call`, of M ≤ MAX_ROWS rows, on the current stream."""
    m, n, k = call.shape
    config = config or fragment_config(m, n, k, gated=call.gated)
    num_programs = triton.cdiv(n, config.block_n // (1 + call.gated))
    _fragment_kernel[(num_programs,)](
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
        BLOCK_M=max(8, triton.next_power_of_2(m)),
        BLOCK_N=config.block_n,
        CHUNKS=config.chunks,
        WARPS=config.num_warps,
        ROW_WARPS=config.row_warps,
        EARLY=config.early,
        num_warps=config.num_warps,
        num_stages=1,
        **call.flags,
        **launch_options(call, pdl),
    )


@triton.jit
def _tile_lines(ROWS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr, ROW_WARPS: tl.constexpr):
    """Of each line, 32 neighbouring columns, of a tile in which a warp has ROWS · CHUNKS of them: row, the warp's part
    of the rows, and first column; each [ROWS · CHUNKS · WARPS].

    A warp loads eight lines, of eight rows, at once. To the compiler a tile is a flat list of lines, which leaves it
    one way to spread lanes, then warps, then registers over it: the one that the fragments need."""
    i = tl.arange(0, ROWS * CHUNKS * WARPS)
    warp = i // 8 % WARPS
    row = i // (CHUNKS * WARPS * 8) * 8 + i % 8
    column_warp = warp % (WARPS // ROW_WARPS)
    return row, warp // (WARPS // ROW_WARPS), (column_warp * CHUNKS + i // (8 * WARPS) % CHUNKS) * 32


@triton.jit
def _fragments(tile, ROWS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr):
    """[WARPS, ROWS, CHUNKS · 32] of a tile [ROWS · CHUNKS · WARPS, 32], in an order of columns that moves nothing."""
    parts = tl.reshape(tile, [ROWS // 8, CHUNKS, WARPS, 8, 4, 2, 2, 2])
    parts = tl.permute(parts, [2, 0, 3, 1, 5, 6, 4, 7])
    return tl.reshape(parts, [WARPS, ROWS, CHUNKS * 32])


@triton.jit
def _load(tile, k, num_columns, EVEN: tl.constexpr, ONCE: tl.constexpr):
    """A tile, 0 in columns from `num_columns` on, of which EVEN says there are none. ONCE: it is not read again."""
    eviction: tl.constexpr = "evict_first" if ONCE else ""
    if EVEN:
        values = tl.load(tile, eviction_policy=eviction)
    else:
        values = tl.load(tile, mask=k < num_columns, other=0.0, eviction_policy=eviction)
    return values


@triton.jit
def _norm(loaded, norm, squares, CHUNKS: tl.constexpr, WARPS: tl.constexpr):
    """(x · norm_weight, rounded, in x's shape; `squares` [BLOCK_M / 8, WARPS · 8, 4] with x² added) for tiles of x
    [BLOCK_M · CHUNKS · WARPS, 32] and of the weight of the norm [8 · CHUNKS · WARPS, 32]."""
    GROUPS: tl.constexpr = squares.shape[0]
    NUM_LINES: tl.constexpr = CHUNKS * WARPS * 8
    x = tl.reshape(loaded.to(tl.float32), [GROUPS, NUM_LINES, 32])
    by_eight = tl.sum(tl.reshape(x * x, [GROUPS, CHUNKS, WARPS * 8, 4, 8]), axis=4)
    normed = x * tl.reshape(norm.to(tl.float32), [1, NUM_LINES, 32])
    return tl.reshape(normed.to(loaded.dtype), [GROUPS * NUM_LINES, 32]), squares + tl.sum(by_eight, axis=1)


@triton.jit
def _add_products(sums, squares, w, x, norm, CHUNKS: tl.constexpr, NORM: tl.constexpr):
    """(`sums` [WARPS, ROWS, BLOCK_M], `squares`) with those of a tile added."""
    WARPS: tl.constexpr = sums.shape[0]
    ROWS: tl.constexpr = sums.shape[1]
    BLOCK_M: tl.constexpr = sums.shape[2]
    if NORM:
        x, squares = _norm(x, norm, squares, CHUNKS, WARPS)
    x = tl.permute(_fragments(x, BLOCK_M, CHUNKS, WARPS), [0, 2, 1])
    return tl.dot(_fragments(w, ROWS, CHUNKS, WARPS), x, sums), squares


@triton.jit(do_not_specialize=["M"])
def _fragment_kernel(
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
    CHUNKS: tl.constexpr,
    WARPS: tl.constexpr,
    ROW_WARPS: tl.constexpr,
    EARLY: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    tile = tl.program_id(0)
    ROWS: tl.constexpr = BLOCK_N // ROW_WARPS
    i = tl.arange(0, 32)[None, :]
    n, part, w_k = _tile_lines(ROWS, CHUNKS, WARPS, ROW_WARPS)
    m, _, x_k = _tile_lines(BLOCK_M, CHUNKS, WARPS, ROW_WARPS)
    _, _, norm_k = _tile_lines(8, CHUNKS, WARPS, ROW_WARPS)
    w_k, x_k, norm_k = w_k[:, None] + i, x_k[:, None] + i, norm_k[:, None] + i
    w_tile = w_ptr + weight_rows(part * ROWS + n, tile, N, BLOCK_N, GATED)[:, None] * K + w_k
    x_tile = x_ptr + tl.minimum(m, M - 1)[:, None] * K + x_k  # Rows past the last repeat it and are not stored.
    norm_tile = norm_ptr + norm_k
    if PDL and EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    STEP: tl.constexpr = WARPS // ROW_WARPS * CHUNKS * 32
    EVEN: tl.constexpr = K % STEP == 0
    w = _load(w_tile, w_k, K, EVEN, ONCE=True)
    if PDL:
        tl.extra.cuda.gdc_wait()
    x = _load(x_tile, x_k, K, EVEN, ONCE=False)
    norm = _load(norm_tile, norm_k, K, EVEN, ONCE=False) if NORM else x
    sums = tl.zeros([WARPS, ROWS, BLOCK_M], tl.float32)
    squares = tl.zeros([BLOCK_M // 8, WARPS * 8, 4], tl.float32)
    sums, squares = _add_products(sums, squares, w, x, norm, CHUNKS, NORM)
    for start in range(STEP, K, STEP):
        w = _load(w_tile + start, w_k, K - start, EVEN, ONCE=True)
        tl.debug_barrier()  # Else the assembler puts products, and waits, between these loads.
        x = _load(x_tile + start, x_k, K - start, EVEN, ONCE=False)
        norm = _load(norm_tile + start, norm_k, K - start, EVEN, ONCE=False) if NORM else x
        sums, squares = _add_products(sums, squares, w, x, norm, CHUNKS, NORM)
    if PDL and not EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    sums = tl.sum(tl.reshape(sums, [ROW_WARPS, WARPS // ROW_WARPS, ROWS, BLOCK_M]), axis=1)
    squares = tl.sum(tl.reshape(tl.sum(squares, axis=2), [BLOCK_M // 8, WARPS, 8]), axis=1)
    finish(
        tl.trans(tl.reshape(sums, [BLOCK_N, BLOCK_M])),
        tl.reshape(squares, [BLOCK_M]) / ROW_WARPS,  # Each has summed all of them.
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
