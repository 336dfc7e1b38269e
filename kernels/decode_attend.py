"""One KV head's part of paged_decode_attention.py: queries over a run of tiles of keys, 16-bit and fp8.

Both give the unnormalised output [ROWS, D], the maximum of the scores in base 2 and the sum of weights, [ROWS].
"""

import triton
import triton.language as tl

from .decode_queries import seen_by_queries
from .dispatch import INTERPRETED

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


@triton.jit
def _token_offsets(key, block, NUM_KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """int64 [TILE]: where the K of each key begins, from (block 0, the head); V begins BLOCK_SIZE · WIDTH later."""
    return block.to(tl.int64) * (NUM_KV_HEADS * 2 * BLOCK_SIZE * WIDTH) + (key % BLOCK_SIZE) * WIDTH


@triton.jit
def first_blocks(table, first_key, context, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """[TILE]: the block of each key of a tile."""
    key = first_key + tl.arange(0, TILE)
    return tl.load(table + key // BLOCK_SIZE, mask=key < context, other=0)


@triton.jit
def _reweigh(scores, seen, top):
    """Weights [ROWS, TILE] = exp2(score − new top), what earlier weights decay by and the new top, both [ROWS]."""
    scores = tl.where(seen, scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    return tl.exp2(scores - new_top[:, None]), tl.exp2(top - new_top), new_top


@triton.jit
def _folded(weights, SUMS: tl.constexpr):
    """[ROWS, SUMS], a thread's own weights added up: of [ROWS, TILE], many rows' are too many registers."""
    if weights.shape[1] > SUMS:
        weights = tl.sum(weights.reshape([weights.shape[0], weights.shape[1] // SUMS, SUMS]), 1)
    return weights


@triton.jit
def attend(
    q,  # [ROWS, D]
    kv_head,  # pointer to (block 0, the head)
    table,  # pointer to the row's
    block,  # [TILE], of the first tile's keys
    first_key,  # of the first tile
    lower,  # keys lower … context − 1 are seen
    context,
    contexts,  # [ROWS], of each query; None if that is the context of all
    num_tiles,
    qk_scale,
    WINDOW: tl.constexpr,
    FIRST: tl.constexpr,
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
    SUMS: tl.constexpr = TILE if contexts is None else min(TILE, 32)
    sums = tl.zeros([ROWS, SUMS], tl.float32)
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
        visible = seen[None, :] if contexts is None else seen_by_queries(key - TILE, contexts, WINDOW, FIRST)
        weights, decay, top = _reweigh(scores, visible, top)
        sums = sums * decay[:, None] + _folded(weights, SUMS)
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
def attend_fp8(
    q,
    kv_head,  # int16
    table,
    block,
    first_key,
    lower,
    context,
    contexts,
    num_tiles,
    qk_scale,
    WINDOW: tl.constexpr,
    FIRST: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    E4M3: tl.constexpr,
):
    """`attend` over fp8, two numbers to a word: matrix units read 16-bit tiles from shared memory whole, bytes one by
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
    SUMS: tl.constexpr = TILE if contexts is None else min(TILE, 32)
    sums = tl.zeros([ROWS, SUMS], tl.float32)
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
        visible = seen[None, :] if contexts is None else seen_by_queries(key - TILE, contexts, WINDOW, FIRST)
        weights, decay, top = _reweigh(scores, visible, top)
        sums = sums * decay[:, None] + _folded(weights, SUMS)
        v_even, v_odd = _halves(v, E4M3)
        even = tl.dot(weights.to(tl.float16), v_even, even * decay[:, None])
        odd = tl.dot(weights.to(tl.float16), v_odd, odd * decay[:, None])
    return tl.interleave(even, odd) * unit, top, tl.sum(sums, 1)
