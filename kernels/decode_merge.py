"""The end of paged_decode_attention.py for rows that several programs have parts of: the last to arrive merges them."""

import triton
import triton.language as tl

from .decode_queries import num_queries, query_offsets


@triton.jit
def _merge(
    partials,  # pointer to this program's in slot 0
    log_sums,
    first_slot,  # of the first part; part p after it has slot 2p
    last_part,
    SLOT: tl.constexpr,
    QUERIES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    QUERIES_PAD: tl.constexpr,
    D: tl.constexpr,
):
    """Output [QUERIES_PAD, D] of a row's parts, whose outputs count as much as the sums of their weights."""
    query, dim = tl.arange(0, QUERIES_PAD), tl.arange(0, D)
    acc = tl.zeros([QUERIES_PAD, D], tl.float32)
    top = tl.full([QUERIES_PAD], -1.0e30, tl.float32)
    total = tl.zeros([QUERIES_PAD], tl.float32)
    first_part = first_slot // 2
    for start in tl.range(first_part, last_part + 1, PARTS):
        part = start + tl.arange(0, PARTS)
        slot = tl.where(part == first_part, first_slot, part * 2) * SLOT
        row = query[:, None] + slot[None, :]  # [QUERIES_PAD, PARTS]: parts within a thread, where they are summed
        mask = (query < QUERIES)[:, None] & (part <= last_part)[None, :]
        # Past the L1 cache, which may hold what lay there before.
        logs = tl.load(log_sums + row, mask=mask, other=-float("inf"), cache_modifier=".cg")
        outputs = tl.load(  # [QUERIES_PAD, PARTS, D]
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
def share(
    output,  # [ROWS, D]
    log_sum,  # [ROWS]
    partials,
    log_sums,
    arrival,
    out_row,
    first_token,
    out_token_stride,
    out_head_stride,
    slot,
    first_slot,
    last_part,
    SLOT: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    RUN: tl.constexpr,
    MERGED_PARTS: tl.constexpr,
    QUERIES_PAD: tl.constexpr,
):
    """Leaves what a part makes of a row in its slot; the last part of the row to arrive merges them and starts over."""
    ROWS: tl.constexpr = output.shape[0]
    D: tl.constexpr = output.shape[1]
    QUERIES: tl.constexpr = GROUP * TOKENS
    query, merged_query, dim = tl.arange(0, ROWS), tl.arange(0, QUERIES_PAD), tl.arange(0, D)[None, :]
    row = slot * SLOT + query  # [ROWS]
    of_queries = (query < QUERIES)[:, None] & (dim < HEAD_DIM)
    tl.store(partials + row[:, None] * HEAD_DIM + dim, output, mask=of_queries)
    tl.store(log_sums + row, log_sum, mask=query < QUERIES)
    # All warps have stored before one of them announces it, and releases what it has seen.
    tl.debug_barrier()
    if tl.atomic_add(arrival, 1, sem="acq_rel") == last_part - first_slot // 2:
        tl.store(arrival, 0)
        merged = _merge(
            partials, log_sums, first_slot, last_part, SLOT, QUERIES, HEAD_DIM, MERGED_PARTS, QUERIES_PAD, D
        )
        of_merged = (merged_query < num_queries(first_token, GROUP, TOKENS, RUN))[:, None] & (dim < HEAD_DIM)
        offsets = query_offsets(merged_query, first_token, out_token_stride, out_head_stride, GROUP, RUN)
        tl.store(out_row + offsets[:, None] + dim, merged, mask=of_merged)
