"""What `stash_rows` left of some sequences is taken up: for each token, where the state of the one before it is, and
where its own is to be kept.

A ring holds L tokens of a sequence, position p at p mod L; NOWHERE where none is, and everywhere once it was taken. Of
each block of a paged pool one position's state is kept: `kept_positions` says which. So the state before a token is

    that of the ring's entry before it, if that has the position before its own;
    else the one kept of that position's block, if it is that position's;
    else not there: zeros

and its own is kept if it is the last of its block, or nothing of the ring goes on from it.
"""

# mypy: allow-incomplete-defs

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches

NOWHERE = -1
ZEROS = -1
BLOCK = 1024
NUM_WARPS = 4


class Stashed(NamedTuple):
    """Of S sequences, T = S L tokens in the order of their rings."""

    slots: Tensor
    """int64 [S]: rings; the last one, in which nothing ever is, for none."""
    rows: Tensor
    """int32 [T]: slots, −1 where no token is."""
    positions: Tensor
    """int32 [T], 0 where none is."""
    token_ids: Tensor
    """int32 [T]"""
    sources: Tensor
    """int32 [T]: the token whose state is the one before, ZEROS, or −2 − block."""
    kept_at: Tensor
    """int64 [T]: blocks; the last one, which is no sequence's, for what is not kept."""


def take_stashed(
    slots: Tensor,
    ring_tokens: Tensor,
    ring_positions: Tensor,
    block_tables: Tensor,
    kept_positions: Tensor,
    block_size: int,
) -> Stashed:
    """int32 each: slots [S], different ones, −1 for none; the rings [R, L], of which the positions are cleared;
    block_tables [R', max_blocks]; kept_positions [num_blocks + 1]. Raises ValueError for wrong shapes or dtypes."""
    for tensor, num_dims in ((slots, 1), (ring_tokens, 2), (ring_positions, 2), (block_tables, 2), (kept_positions, 1)):
        if tensor.dtype != torch.int32 or tensor.dim() != num_dims:
            raise ValueError(f"{tensor.dtype} {tuple(tensor.shape)} given, not int32 of {num_dims} dimensions")
    if ring_tokens.shape != ring_positions.shape:
        raise ValueError(f"{tuple(ring_tokens.shape)} tokens, but {tuple(ring_positions.shape)} positions")
    if not launches(slots):
        return ref_take_stashed(slots, ring_tokens, ring_positions, block_tables, kept_positions, block_size)
    num_seqs, length = len(slots), ring_tokens.shape[1]
    ints = [torch.empty(num_seqs * length, dtype=torch.int32, device=slots.device) for _ in range(4)]
    rings, kept_at = (torch.empty(n, dtype=torch.int64, device=slots.device) for n in (num_seqs, num_seqs * length))
    rows, positions, token_ids, sources = ints
    found = Stashed(rings, rows, positions, token_ids, sources, kept_at)
    if num_seqs:
        _take[(num_seqs,)](
            slots,
            ring_tokens,
            ring_positions,
            block_tables,
            kept_positions,
            *found,
            block_tables.stride(0),
            len(ring_tokens) - 1,
            len(kept_positions) - 1,
            block_size,
            L=length,
            BLOCK=triton.next_power_of_2(length),
            num_warps=NUM_WARPS,
        )
    return found


def states_before(hidden: Tensor, sources: Tensor, kept: Tensor) -> Tensor:
    """By `Stashed.sources` [T], from the tokens' own states [T, H] and those kept of blocks [num_blocks + 1, H]:
    [T, H]. Raises ValueError where their dtypes or widths differ."""
    if hidden.dtype != kept.dtype or hidden.shape[1] != kept.shape[1] or len(sources) != len(hidden):
        raise ValueError(f"{hidden.dtype} {tuple(hidden.shape)} beside {kept.dtype} {tuple(kept.shape)}")
    if not launches(hidden):
        return ref_states_before(hidden, sources, kept)
    num_tokens, width = hidden.shape
    before = torch.empty_like(hidden)
    if num_tokens:
        grid = num_tokens, triton.cdiv(width, BLOCK)
        _before[grid](hidden, sources, kept, before, hidden.stride(0), width, BLOCK=BLOCK, num_warps=NUM_WARPS)
    return before


def ref_take_stashed(
    slots: Tensor,
    ring_tokens: Tensor,
    ring_positions: Tensor,
    block_tables: Tensor,
    kept_positions: Tensor,
    block_size: int,
) -> Stashed:
    rings = torch.where(slots < 0, len(ring_tokens) - 1, slots).long()
    found = ring_positions[rings]
    ring_positions.index_fill_(0, rings, NOWHERE)
    is_token = found >= 0
    rows, positions = torch.where(is_token, slots[:, None], -1), found.clamp(min=0)
    tables = block_tables[slots.clamp(min=0).long()]
    wanted = positions - 1
    blocks = tables.gather(1, (wanted.clamp(min=0) // block_size).long())
    is_kept = is_token & (wanted >= 0) & (kept_positions[blocks.long()] == wanted)
    after_another = is_token & (positions > 0) & (found.roll(1, 1) == wanted)
    inner = torch.arange(found.numel(), dtype=torch.int32, device=slots.device).view_as(found).roll(1, 1)
    sources = torch.where(after_another, inner, torch.where(is_kept, -2 - blocks, ZEROS))
    goes_on = found.roll(-1, 1) == positions + 1
    is_last = is_token & (~goes_on | ((positions + 1) % block_size == 0))
    own = tables.gather(1, (positions // block_size).long())
    kept_at = torch.where(is_last, own, len(kept_positions) - 1).long()
    token_ids = ring_tokens[rings].flatten()
    return Stashed(rings, rows.flatten(), positions.flatten(), token_ids, sources.flatten(), kept_at.flatten())


def ref_states_before(hidden: Tensor, sources: Tensor, kept: Tensor) -> Tensor:
    places = sources.long()
    inner, outer = hidden[places.clamp(min=0)], kept[(-2 - places).clamp(min=0)]
    return torch.where((places >= 0)[:, None], inner, torch.where((places < ZEROS)[:, None], outer, 0))


@triton.jit
def _take(
    slots,
    ring_tokens,
    ring_positions,
    block_tables,
    kept_positions,
    rings_out,
    rows_out,
    positions_out,
    tokens_out,
    sources_out,
    kept_out,
    table_stride,
    no_ring,
    no_block,
    block_size,
    L: tl.constexpr,
    BLOCK: tl.constexpr,
):
    seq = tl.program_id(0)
    slot = tl.load(slots + seq)
    ring = tl.where(slot < 0, no_ring, slot).to(tl.int64)
    tl.store(rings_out + seq, ring)
    at = tl.arange(0, BLOCK)  # [BLOCK]
    is_entry = at < L
    previous = (at + L - 1) % L
    ring_positions += ring * L
    found = tl.load(ring_positions + at, is_entry, other=-1)
    found_before = tl.load(ring_positions + previous, is_entry, other=-1)
    found_after = tl.load(ring_positions + (at + 1) % L, is_entry, other=-1)
    is_token = is_entry & (found >= 0)
    position = tl.where(is_token, found, 0)
    wanted = position - 1
    table = block_tables + tl.where(slot < 0, 0, slot).to(tl.int64) * table_stride
    is_inner = is_token & (wanted >= 0) & (found_before == wanted)
    asks = is_token & (wanted >= 0)
    block = tl.load(table + wanted // block_size, asks, other=0)
    is_kept = asks & (tl.load(kept_positions + block, asks, other=-1) == wanted)
    source = tl.where(is_inner, seq * L + previous, tl.where(is_kept, -2 - block, -1))
    ends = (found_after != position + 1) | ((position + 1) % block_size == 0)
    own = tl.load(table + position // block_size, is_token, other=0)
    out = seq * L + at
    tl.store(rows_out + out, tl.where(is_token, slot, -1), is_entry)
    tl.store(positions_out + out, position, is_entry)
    tl.store(tokens_out + out, tl.load(ring_tokens + ring * L + at, is_entry, other=0), is_entry)
    tl.store(sources_out + out, source, is_entry)
    tl.store(kept_out + out, tl.where(is_token & ends, own, no_block).to(tl.int64), is_entry)
    tl.debug_barrier()  # others have read their neighbours
    tl.store(ring_positions + at, tl.full((BLOCK,), -1, tl.int32), is_entry)


@triton.jit
def _before(hidden, sources, kept, before, hidden_stride, H, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    source = tl.load(sources + token).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    values = tl.zeros((BLOCK,), before.dtype.element_ty)
    if source >= 0:
        values = tl.load(hidden + source * hidden_stride + columns, columns < H)
    if source < -1:
        values = tl.load(kept + (-2 - source) * H + columns, columns < H)
    tl.store(before + token * H + columns, values, columns < H)
