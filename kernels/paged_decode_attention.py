"""Attention of one query token a sequence, or a short run of them, over paged KV: out = softmax(q · Kᵀ · scale) · V.

Shapes: q and out [B, num_heads, head_dim], or of runs of R tokens [B, R, num_heads, head_dim], bf16, fp16 or fp32,
head_dim contiguous; kv_layer contiguous [num_blocks, num_kv_heads, 2, block_size, head_dim] (K is 0, V is 1) of any of
these, or of fp8, which stores value / k_scale and value / v_scale; block_tables int32 [num_rows, max_blocks]; rows,
positions and lengths int32 [B]. Token i of entry b sees keys 0 … positions[b] + i of table row rows[b], with a window
only the last `window` of them, and none before `first_position`, which lies in the first tile. Of a run exist the first
lengths[b] tokens, 1 … R; the others, all where rows[b] = −1, and what sees no key give zeros. Slots outside of what a
run's tokens see are never read, and table entries there may be garbage.
Checked: up to 16 query heads share a KV head, block_size is a power of two. Of the device's values nothing is.

A program takes one part (decode_partition.py) of one KV head: a run of tiles across rows. What it has to know comes in
one record, and a row's record, blocks and queries are on their way before the row ahead of it is done, so that few
loads wait for one another. The query heads that share the KV head, of every token of a run, are the rows of one matrix
tile, padded to the 16 of the matrix units or to a higher power of two: KV is read once for them all, unless they are so
many that programs share the run. A row, a sequence's, that lies in one part is written at once; of others each part
leaves its output and the log of its sum, and the last part to arrive merges them in the order of parts: results do not
change from run to run, though they do, by rounding, with the rest of the batch.
Products are in q's dtype, with fp8 in fp16, and sums in fp32. NaN is no value of e4m3 here: it counts as 480.
Sources: Milakov & Gimelshein 2018 (online softmax); "Flash-Decoding", Dao et al. 2023 (split KV and merge).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .decode_attend import attend, attend_fp8, first_blocks
from .decode_merge import share
from .decode_partition import (
    FIRST_CONTEXT,
    PART_FIELDS,
    ROW_FIELDS,
    ROW_OF_PART,
    DecodeConfig,
    DecodeWorkspace,
    check_step,
    load_row,
)
from .decode_queries import load_queries, num_queries, query_contexts, query_offsets
from .dispatch import launches

_ROWS = 16
"""Of a matrix unit's tile."""

_FP8 = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


def ref_paged_decode_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    positions: Tensor,
    *,
    scale: float,
    lengths: Tensor | None = None,
    window: int | None = None,
    first_position: int = 0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Token by token, in fp32, or in fp64 where q is."""
    runs = q if q.dim() == 4 else q[:, None]  # [B, R, H, D]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.zeros_like(runs, memory_format=torch.contiguous_format)
    (_, run_length, num_heads, _), block_size = runs.shape, kv_layer.shape[3]
    counts = [run_length] * len(runs) if lengths is None or run_length == 1 else lengths.tolist()
    for b, (row, position, count) in enumerate(zip(rows.tolist(), positions.tolist(), counts, strict=True)):
        for i in range(count if row >= 0 else 0):
            end = position + i + 1
            first = max(first_position, end - window) if window else first_position
            keys = torch.arange(min(first, end), end, device=q.device)
            tokens = kv_layer[block_tables[row, keys // block_size].long(), :, :, keys % block_size].to(dtype)
            k, v = tokens.repeat_interleave(num_heads // kv_layer.shape[1], 1).unbind(2)  # [keys, H, D]
            scores = torch.einsum("hd,khd->hk", runs[b, i].to(dtype), k * k_scale) * scale
            out[b, i] = torch.einsum("hk,khd->hd", scores.softmax(-1), v * v_scale).to(q.dtype)
    return out.view(q.shape)


@triton.jit
def _normalise(acc, total, v_scale):
    """[heads, D]; zeros where nothing was summed: of padding."""
    return acc * (v_scale / tl.where(total == 0.0, 1.0, total))[:, None]


@triton.jit
def _decode_kernel(
    q,
    kv_layer,
    block_tables,
    row_records,
    part_records,
    partials,
    log_sums,
    arrivals,
    out,
    q_row_stride,
    q_token_stride,
    q_head_stride,
    out_row_stride,
    out_token_stride,
    out_head_stride,
    table_stride,
    qk_scale,
    v_scale,
    WINDOW: tl.constexpr,
    FIRST: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    QUERIES_PAD: tl.constexpr,
    MERGED_PARTS: tl.constexpr,
    FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    program, part = tl.program_id(0), tl.program_id(1)
    PROGRAMS: tl.constexpr = (RUN + TOKENS - 1) // TOKENS  # of a KV head
    QUERIES: tl.constexpr = TOKENS * GROUP
    kv_head, first_token = program // PROGRAMS, program % PROGRAMS * TOKENS
    query, dim = tl.arange(0, ROWS)[:, None], tl.arange(0, D)[None, :]
    # Of fp8, an element of kv_layer is two numbers.
    WIDTH: tl.constexpr = HEAD_DIM if FP8 == "" else HEAD_DIM // 2
    kv_base = kv_layer + kv_head * 2 * BLOCK_SIZE * WIDTH

    record = part_records + part * PART_FIELDS
    part_start, part_end = tl.load(record), tl.load(record + 1)
    first_row, num_rows = tl.load(record + 2), tl.load(record + 3)
    row_start, row_end, table_row, context, first_slot, last_part = load_row(record + ROW_OF_PART)
    context = tl.where(num_rows > 0, context, 0)  # an empty part's record is of no row
    first_context = tl.load(record + ROW_OF_PART + FIRST_CONTEXT) if RUN > 1 else context
    lower = tl.maximum(first_context - WINDOW, FIRST) if WINDOW else FIRST
    first_key = (lower // TILE + part_start - row_start) * TILE
    table = block_tables + tl.maximum(table_row, 0).to(tl.int64) * table_stride
    block = first_blocks(table, first_key, context, BLOCK_SIZE, TILE)
    q_head = q + kv_head * GROUP * q_head_stride
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    q_row = q_head + first_row.to(tl.int64) * q_row_stride
    queries = load_queries(
        q_row, first_token, q_token_stride, q_head_stride, num_rows > 0, GROUP, HEAD_DIM, TOKENS, RUN, ROWS, D
    )

    # The first row and the last, in which other parts have a share, come before those between: merges then happen while
    # there is KV to read, and not at the end.
    b, nth = first_row, 0
    while nth < num_rows:
        next_b = tl.where(nth == 0, first_row + num_rows - 1, tl.where(nth == 1, first_row + 1, b + 1))
        next_start, next_end, next_table_row, next_context, next_slot, next_last = load_row(
            row_records + next_b * ROW_FIELDS
        )
        next_first = tl.load(row_records + next_b * ROW_FIELDS + FIRST_CONTEXT) if RUN > 1 else next_context
        tile, stop = tl.maximum(part_start, row_start), tl.minimum(part_end, row_end)
        out_row = out + b.to(tl.int64) * out_row_stride + kv_head * GROUP * out_head_stride
        contexts = query_contexts(first_token, first_context, context, GROUP, ROWS) if RUN > 1 else None
        if FP8 == "":
            acc, top, total = attend(
                queries,
                kv_base,
                table,
                block,
                first_key,
                lower,
                context,
                contexts,
                stop - tile,
                qk_scale,
                WINDOW,
                FIRST,
                NUM_KV_HEADS,
                HEAD_DIM,
                BLOCK_SIZE,
                TILE,
                ROWS,
                D,
            )
        else:
            acc, top, total = attend_fp8(
                queries,
                kv_base,
                table,
                block,
                first_key,
                lower,
                context,
                contexts,
                stop - tile,
                qk_scale,
                WINDOW,
                FIRST,
                NUM_KV_HEADS,
                HEAD_DIM,
                BLOCK_SIZE,
                TILE,
                ROWS,
                D,
                FP8 == "e4m3",
            )
        nth += 1
        next_context = tl.where(nth < num_rows, next_context, 0)
        next_first = next_first if RUN > 1 else next_context
        lower = tl.maximum(next_first - WINDOW, FIRST) if WINDOW else FIRST
        first_key = lower // TILE * TILE
        table = block_tables + tl.maximum(next_table_row, 0).to(tl.int64) * table_stride
        block = first_blocks(table, first_key, next_context, BLOCK_SIZE, TILE)
        q_row = q_head + next_b.to(tl.int64) * q_row_stride
        queries = load_queries(
            q_row, first_token, q_token_stride, q_head_stride, nth < num_rows, GROUP, HEAD_DIM, TOKENS, RUN, ROWS, D
        )
        if (tile == row_start) & (stop == row_end):
            mask = (query < num_queries(first_token, GROUP, TOKENS, RUN)) & (dim < HEAD_DIM)
            offsets = query_offsets(query, first_token, out_token_stride, out_head_stride, GROUP, RUN)
            tl.store(out_row + offsets + dim, _normalise(acc, total, v_scale), mask=mask)
        else:
            share(
                _normalise(acc, total, v_scale),
                top + tl.log2(total),
                partials + program * QUERIES * HEAD_DIM,
                log_sums + program * QUERIES,
                arrivals + b * (NUM_KV_HEADS * PROGRAMS) + program,
                out_row,
                first_token,
                out_token_stride,
                out_head_stride,
                2 * part + (b > first_row),  # a part's first row has its slot 0, its last row slot 1
                first_slot,
                last_part,
                NUM_KV_HEADS * PROGRAMS * QUERIES,
                GROUP,
                HEAD_DIM,
                TOKENS,
                RUN,
                MERGED_PARTS,
                QUERIES_PAD,
            )
        b, row_start, row_end, context = next_b, next_start, next_end, next_context
        first_slot, last_part, first_context = next_slot, next_last, next_first


def paged_decode_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    positions: Tensor,
    *,
    scale: float,
    workspace: DecodeWorkspace,
    lengths: Tensor | None = None,
    window: int | None = None,
    first_position: int = 0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """As q. `partition_decode` has been given these rows, positions, lengths and R on this workspace.

    `pdl`: a programmatic dependent launch. Partition and block tables are then read, and KV asked for in the L2 cache,
    before the launches ahead of this one are done, so between what wrote the first two and the first layer's attention
    stands a launch without it. Of compute capability 9.0 on.
    Raises ValueError on shapes, dtypes or strides it does not take, or a workspace for others."""
    run_length = q.shape[1] if q.dim() == 4 else 1
    check_step(rows, positions, workspace, run_length, lengths)
    _check(q, kv_layer, block_tables, len(rows), workspace, window)
    if not 0 <= first_position < workspace.config.tile:
        raise ValueError(f"first_position is {first_position}, not in the first tile of {workspace.config.tile} keys")
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    elif out.shape != q.shape or out.dtype != q.dtype or out.stride(-1) != 1:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}, q {q.dtype} {list(q.shape)}")
    if not launches(q):
        inputs = (q, kv_layer, block_tables, rows, positions)
        reference = ref_paged_decode_attention(
            *inputs,
            scale=scale,
            lengths=lengths,
            window=window,
            first_position=first_position,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        return out.copy_(reference)
    _, num_kv_heads, _, block_size, head_dim = kv_layer.shape
    group, padded_dim = workspace.num_heads // num_kv_heads, triton.next_power_of_2(head_dim)
    split = workspace.split(run_length)
    queries_pad = triton.next_power_of_2(split.tokens * group)
    fp8 = _FP8.get(kv_layer.dtype, "")
    _decode_kernel[(num_kv_heads * split.programs, split.num_parts)](
        q,
        kv_layer.view(torch.int16) if fp8 else kv_layer,
        block_tables,
        workspace.row_records,
        workspace.part_records,
        workspace.partials,
        workspace.log_sums,
        workspace.arrivals,
        out,
        q.stride(0),
        q.stride(1) if run_length > 1 else None,
        q.stride(-2),
        out.stride(0),
        out.stride(1) if run_length > 1 else None,
        out.stride(-2),
        block_tables.stride(0),
        scale * k_scale * math.log2(math.e),
        v_scale,
        WINDOW=window or 0,
        FIRST=first_position,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        TILE=workspace.config.tile,
        TOKENS=split.tokens,
        RUN=run_length,
        ROWS=max(_ROWS, queries_pad),
        D=padded_dim,
        QUERIES_PAD=queries_pad,
        MERGED_PARTS=_merged_parts(workspace.config, queries_pad * padded_dim),
        FP8=fp8,
        PDL=pdl,
        num_warps=workspace.config.num_warps,
        num_stages=workspace.config.num_stages,
        # Left to itself the assembler spills some to make room for programs that do not come. The next launch's do.
        maxnreg=None if pdl else _registers(workspace.config),
        launch_pdl=pdl,
    )
    return out


def _registers(config: DecodeConfig) -> int:
    """Of a thread, when all programs of a multiprocessor share its 64 K."""
    return min(255, 65536 // (32 * config.num_warps * config.programs_per_sm) // 8 * 8)


def _merged_parts(config: DecodeConfig, elements: int) -> int:
    """How many parts' outputs, each of `elements`, one step of a merge loads: in a quarter of a thread's registers."""
    num_warps = config.num_warps * config.programs_per_sm
    registers = 64 if num_warps <= 8 else 32 if num_warps <= 12 else 16
    return max(1, registers * 32 * config.num_warps // elements)


def _check(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    batch: int,
    workspace: DecodeWorkspace,
    window: int | None,
) -> None:
    num_heads, head_dim = workspace.num_heads, workspace.partials.shape[-1]
    run = q.shape[1:2] if q.dim() == 4 else ()
    if q.shape != (batch, *run, num_heads, head_dim) or q.stride(-1) != 1:
        raise ValueError(f"q is {list(q.shape)}, the workspace is for [{batch}, {num_heads}, {head_dim}] or runs of it")
    if kv_layer.dim() != 5 or not kv_layer.is_contiguous():
        raise ValueError("kv_layer is not contiguous [num_blocks, num_kv_heads, 2, block_size, head_dim]")
    _, num_kv_heads, two, block_size, kv_head_dim = kv_layer.shape
    if (num_kv_heads, two, kv_head_dim) != (workspace.num_kv_heads, 2, head_dim) or block_size & (block_size - 1):
        raise ValueError(f"kv_layer is {list(kv_layer.shape)}, for {workspace.num_kv_heads} KV heads of {head_dim}")
    if num_heads // num_kv_heads > _ROWS:
        raise ValueError(f"{num_heads // num_kv_heads} query heads share a KV head, more than {_ROWS}")
    if block_tables.dim() != 2 or block_tables.dtype != torch.int32 or block_tables.stride(1) != 1:
        raise ValueError(f"block_tables is {block_tables.dtype} {list(block_tables.shape)}, not int32 rows of blocks")
    if window != workspace.window:
        raise ValueError(f"window is {window}, the workspace's {workspace.window}")
