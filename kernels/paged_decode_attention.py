"""Attention of one query token a sequence over its paged KV: out = softmax(q · Kᵀ · scale) · V.

Shapes: q and out [B, num_heads, head_dim], bf16, fp16 or fp32, head_dim contiguous; kv_layer contiguous [num_blocks,
num_kv_heads, 2, block_size, head_dim] (K is 0, V is 1) of any of these, or of fp8, which stores value / k_scale and
value / v_scale; block_tables int32 [num_rows, max_blocks]; rows and positions int32 [B]. Entry b sees keys 0 …
positions[b] of table row rows[b], with a window only the last `window` of them; rows[b] = −1 gives zeros. Slots outside
of what it sees are never read, and table entries there may be garbage. Checked: up to 16 query heads share a KV head,
block_size is a power of two. Of the device's values nothing is.

A program takes one part (decode_partition.py) of one KV head: a run of tiles across rows. What it has to know comes in
one record, and a row's record, blocks and queries are on their way before the row ahead of it is done, so that few
loads wait for one another. The query heads that share the KV head are the rows of one matrix tile, padded to the 16 of
the matrix units. A row that lies in one part is written at once; of others each part leaves its output and the log of
its sum, and the last part to arrive merges them in the order of parts: results do not change from run to run, though
they do, by rounding, with the rest of the batch.
Products are in q's dtype, with fp8 in fp16, and sums in fp32. NaN is no value of e4m3 here: it counts as 480.
Sources: Milakov & Gimelshein 2018 (online softmax); "Flash-Decoding", Dao et al. 2023 (split KV and merge).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .decode_partition import PART_FIELDS, ROW_FIELDS, ROW_OF_PART, DecodeConfig, DecodeWorkspace, check_step, load_row
from .dispatch import INTERPRETED, launches

_ROWS = 16
"""Of a matrix unit's tile."""

_FP8 = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}
COMPILED = tl.constexpr(not INTERPRETED)
E4M3_HALVES = tl.constexpr("""{
    .reg .b32 sign, rest;
    shl.b32 sign, $2, 8;
    shl.b32 rest, $2, 7;
    and.b32 sign, sign, 0x80008000;
    and.b32 rest, rest, 0x3F803F80;
    or.b32 $0, sign, rest;
    shr.b32 rest, $2, 1;
    and.b32 sign, $2, 0x80008000;
    and.b32 rest, rest, 0x3F803F80;
    or.b32 $1, sign, rest;
}""")
E5M2_HALVES = tl.constexpr("""{
    .reg .b32 low;
    shl.b32 low, $2, 8;
    and.b32 $0, low, 0xFF00FF00;
    and.b32 $1, $2, 0xFF00FF00;
}""")


def ref_paged_decode_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    positions: Tensor,
    *,
    scale: float,
    window: int | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Row by row, in fp32, or in fp64 where q is."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    group, block_size = q.shape[1] // kv_layer.shape[1], kv_layer.shape[3]
    for b, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        if row < 0:
            continue
        keys = torch.arange(max(0, position + 1 - window) if window else 0, position + 1, device=q.device)
        blocks = block_tables[row, keys // block_size].long()
        k, v = kv_layer[blocks, :, :, keys % block_size].to(dtype).repeat_interleave(group, 1).unbind(2)  # [keys, H, D]
        scores = torch.einsum("hd,khd->hk", q[b].to(dtype), k * k_scale) * scale
        out[b] = torch.einsum("hk,khd->hd", scores.softmax(-1), v * v_scale).to(q.dtype)
    return out


@triton.jit
def _token_offsets(key, block, NUM_KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """int64 [TILE]: where the K of each key begins, from (block 0, the head); V begins BLOCK_SIZE · WIDTH later."""
    return block.to(tl.int64) * (NUM_KV_HEADS * 2 * BLOCK_SIZE * WIDTH) + (key % BLOCK_SIZE) * WIDTH


@triton.jit
def _first_blocks(table, first_key, context, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """[TILE]: the block of each key of a tile."""
    key = first_key + tl.arange(0, TILE)
    return tl.load(table + key // BLOCK_SIZE, mask=key < context, other=0)


@triton.jit
def _load_query(
    q_row, head_stride, exists, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr
):
    """[ROWS, D]: the queries of a group, zeros below them."""
    head, dim = tl.arange(0, ROWS)[:, None], tl.arange(0, D)[None, :]
    mask = (head < tl.where(exists, GROUP, 0)) & (dim < HEAD_DIM)
    return tl.load(q_row + head * head_stride + dim, mask=mask, other=0.0)


@triton.jit
def _reweigh(scores, seen, top):
    """Weights [ROWS, TILE] = exp2(score − new top), what earlier weights decay by and the new top, both [ROWS]."""
    scores = tl.where(seen[None, :], scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    return tl.exp2(scores - new_top[:, None]), tl.exp2(top - new_top), new_top


@triton.jit
def _attend(
    q,  # [ROWS, D]
    kv_head,  # pointer to (block 0, the head)
    table,  # pointer to the row's
    block,  # [TILE], of the first tile's keys
    first_key,  # of the first tile
    lower,  # keys lower … context − 1 are seen
    context,
    num_tiles,
    qk_scale,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    """Unnormalised output [ROWS, D], maximum of the scores in base 2 and sum of weights, [ROWS], of a run of tiles."""
    key, dim = first_key + tl.arange(0, TILE), tl.arange(0, D)[None, :]
    acc = tl.zeros([ROWS, D], tl.float32)
    # Finite, so that a tile without a key (of padding) subtracts no infinities.
    top = tl.full([ROWS], -1.0e30, tl.float32)
    # Summed over keys once, at the end: a sum across warps costs barriers.
    sums = tl.zeros([ROWS, TILE], tl.float32)
    for _ in tl.range(0, num_tiles):
        seen = (key >= lower) & (key < context)
        mask = seen[:, None] & (dim < HEAD_DIM)
        token = kv_head + _token_offsets(key, block, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        k = tl.load(token[:, None] + dim, mask=mask, other=0.0)  # [TILE, D]
        v = tl.load(token[:, None] + (dim + BLOCK_SIZE * HEAD_DIM), mask=mask, other=0.0)
        key += TILE
        # A tile's blocks are looked up a tile ahead: its loads of KV need not wait for them.
        block = tl.load(table + key // BLOCK_SIZE, mask=key < context, other=0)

        scores = tl.dot(q, k.to(q.dtype).T, input_precision="ieee") * qk_scale  # [ROWS, TILE]
        weights, decay, top = _reweigh(scores, seen, top)
        sums = sums * decay[:, None] + weights
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * decay[:, None], input_precision="ieee")
    return acc, top, tl.sum(sums, 1)


@triton.jit
def _halves(pairs, E4M3: tl.constexpr):
    """fp16 of the two fp8 numbers in each int16, the first in the low byte; of e4m3, 2⁻⁸ of them.

    e5m2 is the top byte of an fp16; e4m3 is its top bits but for an exponent bit less: a sign, a gap and 7 bits."""
    if COMPILED:  # Two words a register; Triton's operators take one, and three times the instructions.
        return tl.inline_asm_elementwise(
            E4M3_HALVES if E4M3 else E5M2_HALVES, "=r,=r,r", [pairs], (tl.float16, tl.float16), is_pure=True, pack=2
        )
    if E4M3:
        low = ((pairs << 8) & -0x8000) | ((pairs << 7) & 0x3F80)
        high = (pairs & -0x8000) | ((pairs >> 1) & 0x3F80)
    else:
        low, high = pairs << 8, pairs & -0x100
    return low.to(tl.float16, bitcast=True), high.to(tl.float16, bitcast=True)


@triton.jit
def _attend_fp8(
    q,
    kv_head,  # int16
    table,
    block,
    first_key,
    lower,
    context,
    num_tiles,
    qk_scale,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    E4M3: tl.constexpr,
):
    """`_attend` over fp8, two numbers to a word: matrix units read 16-bit tiles from shared memory whole, bytes one by
    one. Products are of even dimensions and of odd ones, in fp16."""
    WORDS: tl.constexpr = HEAD_DIM // 2
    key, word = first_key + tl.arange(0, TILE), tl.arange(0, D // 2)[None, :]
    # A head's queries are scaled to at most 1: fp16 has not the range of bf16.
    q = q.to(tl.float32)
    q_top = tl.max(tl.abs(q), 1)
    q_top = tl.where(q_top == 0.0, 1.0, q_top)[:, None]  # [ROWS, 1]
    q_even, q_odd = tl.split((q / q_top).to(tl.float16).reshape([ROWS, D // 2, 2]))  # [ROWS, D / 2]
    unit: tl.constexpr = 256.0 if E4M3 else 1.0
    row_scale = q_top * (qk_scale * unit)

    even = tl.zeros([ROWS, D // 2], tl.float32)
    odd = tl.zeros([ROWS, D // 2], tl.float32)
    top = tl.full([ROWS], -1.0e30, tl.float32)
    sums = tl.zeros([ROWS, TILE], tl.float32)
    for _ in tl.range(0, num_tiles):
        seen = (key >= lower) & (key < context)
        mask = seen[:, None] & (word < WORDS)
        token = kv_head + _token_offsets(key, block, NUM_KV_HEADS, WORDS, BLOCK_SIZE)
        k = tl.load(token[:, None] + word, mask=mask, other=0)  # [TILE, D / 2]
        v = tl.load(token[:, None] + (word + BLOCK_SIZE * WORDS), mask=mask, other=0)
        key += TILE
        block = tl.load(table + key // BLOCK_SIZE, mask=key < context, other=0)

        k_even, k_odd = _halves(k, E4M3)
        scores = tl.dot(q_odd, k_odd.T, tl.dot(q_even, k_even.T)) * row_scale  # [ROWS, TILE]
        weights, decay, top = _reweigh(scores, seen, top)
        sums = sums * decay[:, None] + weights
        v_even, v_odd = _halves(v, E4M3)
        even = tl.dot(weights.to(tl.float16), v_even, even * decay[:, None])
        odd = tl.dot(weights.to(tl.float16), v_odd, odd * decay[:, None])
    return tl.interleave(even, odd) * unit, top, tl.sum(sums, 1)


@triton.jit
def _merge(
    partials,  # pointer to this head's in slot 0
    log_sums,
    first_slot,  # of the first part; part p after it has slot 2p
    last_part,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    D: tl.constexpr,
):
    """Output [GROUP_PAD, D] of a row's parts, whose outputs count as much as the sums of their weights."""
    head, dim = tl.arange(0, GROUP_PAD), tl.arange(0, D)
    acc = tl.zeros([GROUP_PAD, D], tl.float32)
    top = tl.full([GROUP_PAD], -1.0e30, tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    first_part = first_slot // 2
    for start in tl.range(first_part, last_part + 1, PARTS):
        part = start + tl.arange(0, PARTS)
        slot = tl.where(part == first_part, first_slot, part * 2) * NUM_HEADS
        row = head[:, None] + slot[None, :]  # [GROUP_PAD, PARTS]: parts within a thread, where they are summed
        mask = (head < GROUP)[:, None] & (part <= last_part)[None, :]
        # Past the L1 cache, which may hold what lay there before.
        logs = tl.load(log_sums + row, mask=mask, other=-float("inf"), cache_modifier=".cg")
        outputs = tl.load(  # [GROUP_PAD, PARTS, D]
            partials + row[:, :, None] * HEAD_DIM + dim[None, None, :],
            mask=mask[:, :, None] & (dim < HEAD_DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_top = tl.maximum(top, tl.max(logs, 1))
        weights = tl.exp2(logs - new_top[:, None])
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None] + tl.sum(outputs * weights[:, :, None], 1)
        top = new_top
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def _share(
    output,  # [ROWS, D]
    log_sum,  # [ROWS]
    partials,
    log_sums,
    arrival,
    out_row,
    out_head_stride,
    slot,
    first_slot,
    last_part,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MERGED_PARTS: tl.constexpr,
    GROUP_PAD: tl.constexpr,
):
    """Leaves what a part makes of a row in its slot; the last part of the row to arrive merges them and starts over."""
    ROWS: tl.constexpr = output.shape[0]
    D: tl.constexpr = output.shape[1]
    head, merged_head, dim = tl.arange(0, ROWS), tl.arange(0, GROUP_PAD), tl.arange(0, D)[None, :]
    row = slot * NUM_HEADS + head  # [ROWS]
    of_group = (head < GROUP)[:, None] & (dim < HEAD_DIM)
    tl.store(partials + row[:, None] * HEAD_DIM + dim, output, mask=of_group)
    tl.store(log_sums + row, log_sum, mask=head < GROUP)
    # All warps have stored before one of them announces it, and releases what it has seen.
    tl.debug_barrier()
    if tl.atomic_add(arrival, 1, sem="acq_rel") == last_part - first_slot // 2:
        tl.store(arrival, 0)
        merged = _merge(
            partials, log_sums, first_slot, last_part, NUM_HEADS, GROUP, HEAD_DIM, MERGED_PARTS, GROUP_PAD, D
        )
        of_merged = (merged_head < GROUP)[:, None] & (dim < HEAD_DIM)
        tl.store(out_row + merged_head[:, None] * out_head_stride + dim, merged, mask=of_merged)


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
    q_head_stride,
    out_row_stride,
    out_head_stride,
    table_stride,
    qk_scale,
    v_scale,
    WINDOW: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    MERGED_PARTS: tl.constexpr,
    FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    kv_head, part = tl.program_id(0), tl.program_id(1)
    head, dim = tl.arange(0, ROWS)[:, None], tl.arange(0, D)[None, :]
    # Of fp8, an element of kv_layer is two numbers.
    WIDTH: tl.constexpr = HEAD_DIM if FP8 == "" else HEAD_DIM // 2
    kv_base = kv_layer + kv_head * 2 * BLOCK_SIZE * WIDTH

    record = part_records + part * PART_FIELDS
    part_start, part_end = tl.load(record), tl.load(record + 1)
    first_row, num_rows = tl.load(record + 2), tl.load(record + 3)
    row_start, row_end, table_row, context, first_slot, last_part = load_row(record + ROW_OF_PART)
    context = tl.where(num_rows > 0, context, 0)  # an empty part's record is of no row
    lower = tl.maximum(context - WINDOW, 0) if WINDOW else 0
    first_key = (lower // TILE + part_start - row_start) * TILE
    table = block_tables + tl.maximum(table_row, 0).to(tl.int64) * table_stride
    block = _first_blocks(table, first_key, context, BLOCK_SIZE, TILE)
    q_head = q + kv_head * GROUP * q_head_stride
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    q_row = q_head + first_row.to(tl.int64) * q_row_stride
    query = _load_query(q_row, q_head_stride, num_rows > 0, GROUP, HEAD_DIM, ROWS, D)

    # The first row and the last, in which other parts have a share, come before those between: merges then happen while
    # there is KV to read, and not at the end.
    b, nth = first_row, 0
    while nth < num_rows:
        next_b = tl.where(nth == 0, first_row + num_rows - 1, tl.where(nth == 1, first_row + 1, b + 1))
        next_start, next_end, next_table_row, next_context, next_slot, next_last = load_row(
            row_records + next_b * ROW_FIELDS
        )
        tile, stop = tl.maximum(part_start, row_start), tl.minimum(part_end, row_end)
        out_row = out + b.to(tl.int64) * out_row_stride + kv_head * GROUP * out_head_stride
        if FP8 == "":
            acc, top, total = _attend(
                query,
                kv_base,
                table,
                block,
                first_key,
                lower,
                context,
                stop - tile,
                qk_scale,
                NUM_KV_HEADS,
                HEAD_DIM,
                BLOCK_SIZE,
                TILE,
                ROWS,
                D,
            )
        else:
            acc, top, total = _attend_fp8(
                query,
                kv_base,
                table,
                block,
                first_key,
                lower,
                context,
                stop - tile,
                qk_scale,
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
        lower = tl.maximum(next_context - WINDOW, 0) if WINDOW else 0
        first_key = lower // TILE * TILE
        table = block_tables + tl.maximum(next_table_row, 0).to(tl.int64) * table_stride
        block = _first_blocks(table, first_key, next_context, BLOCK_SIZE, TILE)
        q_row = q_head + next_b.to(tl.int64) * q_row_stride
        query = _load_query(q_row, q_head_stride, nth < num_rows, GROUP, HEAD_DIM, ROWS, D)
        if (tile == row_start) & (stop == row_end):
            mask = (head < GROUP) & (dim < HEAD_DIM)
            tl.store(out_row + head * out_head_stride + dim, _normalise(acc, total, v_scale), mask=mask)
        else:
            _share(
                _normalise(acc, total, v_scale),
                top + tl.log2(total),
                partials + kv_head * GROUP * HEAD_DIM,
                log_sums + kv_head * GROUP,
                arrivals + b * NUM_KV_HEADS + kv_head,
                out_row,
                out_head_stride,
                2 * part + (b > first_row),  # a part's first row has its slot 0, its last row slot 1
                first_slot,
                last_part,
                NUM_KV_HEADS * GROUP,
                GROUP,
                HEAD_DIM,
                MERGED_PARTS,
                GROUP_PAD,
            )
        b, row_start, row_end, context = next_b, next_start, next_end, next_context
        first_slot, last_part = next_slot, next_last


def paged_decode_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    positions: Tensor,
    *,
    scale: float,
    workspace: DecodeWorkspace,
    window: int | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """[B, num_heads, head_dim]. `partition_decode` has been given these rows and positions on this workspace.

    `pdl`: a programmatic dependent launch. Partition and block tables are then read, and KV asked for in the L2 cache,
    before the launches ahead of this one are done, so between what wrote the first two and the first layer's attention
    stands a launch without it. Of compute capability 9.0 on.
    Raises ValueError on shapes, dtypes or strides it does not take, or a workspace for others."""
    _check(q, kv_layer, block_tables, rows, positions, workspace, window)
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    elif out.shape != q.shape or out.dtype != q.dtype or out.stride(2) != 1:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}, q {q.dtype} {list(q.shape)}")
    if not launches(q):
        inputs = (q, kv_layer, block_tables, rows, positions)
        reference = ref_paged_decode_attention(*inputs, scale=scale, window=window, k_scale=k_scale, v_scale=v_scale)
        return out.copy_(reference)
    _, num_kv_heads, _, block_size, head_dim = kv_layer.shape
    group, padded_dim = workspace.num_heads // num_kv_heads, triton.next_power_of_2(head_dim)
    group_pad = triton.next_power_of_2(group)
    fp8 = _FP8.get(kv_layer.dtype, "")
    _decode_kernel[(num_kv_heads, workspace.num_parts)](
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
        q.stride(1),
        out.stride(0),
        out.stride(1),
        block_tables.stride(0),
        scale * k_scale * math.log2(math.e),
        v_scale,
        WINDOW=window or 0,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        TILE=workspace.config.tile,
        ROWS=_ROWS,
        D=padded_dim,
        GROUP_PAD=group_pad,
        MERGED_PARTS=_merged_parts(workspace.config, group_pad * padded_dim),
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
    rows: Tensor,
    positions: Tensor,
    workspace: DecodeWorkspace,
    window: int | None,
) -> None:
    check_step(rows, positions, workspace)
    num_heads, head_dim = workspace.num_heads, workspace.partials.shape[-1]
    if q.shape != (len(rows), num_heads, head_dim) or q.stride(2) != 1:
        raise ValueError(f"q is {list(q.shape)}, the workspace is for [{len(rows)}, {num_heads}, {head_dim}]")
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
