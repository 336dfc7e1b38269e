"""A line sorted by (logit descending, id ascending), as a Triton device function of one program.

Up to CAPACITY tokens are sorted in registers. More are sorted in tiles of CAPACITY, which are merged in place, tile
by tile in ever wider blocks: the bitonic network in the form where all comparisons point the same way (Batcher,
"Sorting networks and their applications", 1968), which needs no padding: what lies beyond the end would stay there.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .sampling_line import tile_of
from .sampling_row import entry_id, entry_key, key_value

_NO_ENTRY: tl.constexpr = tl.constexpr(-(2**63))


@triton.jit
def sort_line(line, CAPACITY: tl.constexpr):
    """In place; ids are written. Logits are left without a sign of zero."""
    num = line[2]
    for start in range(0, num, CAPACITY):
        _sort_tile(line, start, CAPACITY)
    tl.debug_barrier()
    line = (line[0], line[1], num, num * 0 + 1)
    width = num * 0 + CAPACITY
    while width < num:
        _exchange_all(line, width, True, CAPACITY)
        stride = width // 2
        while stride >= CAPACITY:
            _exchange_all(line, stride, False, CAPACITY)
            stride = stride // 2
        for start in range(0, num, CAPACITY):
            entries = _entries(line, start, CAPACITY)
            _put(line, start, tl.bitonic_merge(entries, descending=True), CAPACITY)
        tl.debug_barrier()
        width = width * 2


@triton.jit
def _sort_tile(line, start, CAPACITY: tl.constexpr):
    _put(line, start, tl.sort(_entries(line, start, CAPACITY), descending=True), CAPACITY)


@triton.jit
def _entries(line, start, CAPACITY: tl.constexpr):
    values, ids, inside = tile_of(line, start, CAPACITY)
    return tl.where(inside, entry_key(values, ids), _NO_ENTRY)


@triton.jit
def _put(line, start, entries, CAPACITY: tl.constexpr):
    place = start + tl.arange(0, CAPACITY)
    inside = place < line[2]
    tl.debug_barrier()
    tl.store(line[0] + place, key_value((entries >> 32).to(tl.int32)), mask=inside)
    tl.store(line[1] + place, entry_id(entries), mask=inside)


@triton.jit
def _exchange_all(line, stride, mirrored, CAPACITY: tl.constexpr):
    """Of each block of 2 × `stride` places, the larger of two entries to the front: those `stride` apart, or, to merge
    two sorted halves, those as far from either end. Each is in one pair."""
    num = line[2]
    for start in range(0, num // 2 + stride, CAPACITY):
        pair = start + tl.arange(0, CAPACITY)
        within = pair % stride
        first = (pair // stride) * 2 * stride + within
        second = tl.where(mirrored, first + 2 * (stride - within) - 1, first + stride)
        both = second < num
        a = entry_key(tl.load(line[0] + first, mask=both, other=0.0), tl.load(line[1] + first, mask=both, other=0))
        b = entry_key(tl.load(line[0] + second, mask=both, other=0.0), tl.load(line[1] + second, mask=both, other=0))
        swaps = both & (b > a)
        tl.store(line[0] + first, key_value((b >> 32).to(tl.int32)), mask=swaps)
        tl.store(line[1] + first, entry_id(b), mask=swaps)
        tl.store(line[0] + second, key_value((a >> 32).to(tl.int32)), mask=swaps)
        tl.store(line[1] + second, entry_id(a), mask=swaps)
    tl.debug_barrier()
