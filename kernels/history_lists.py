"""Lists of logits to change, as Triton device functions: what is to be done is known before anything is.

Of one row and its sequence: `row` fp32 [V], and as room to work in, `found` int32 and `values` fp32 [room]. A token may
stand in a list more than once; each time with its logit as it was before any change.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

_INF: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def note(found, values, count, tokens, numbers, chosen):
    """Adds the `chosen` of `tokens` and `numbers` [BLOCK] to a list of `count`, whose new length it returns."""
    places = count + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(found + places, tokens, mask=chosen)
    tl.store(values + places, numbers, mask=chosen)
    return count + tl.sum(chosen.to(tl.int32), 0)


@triton.jit
def note_bans(row, found, values, count, tokens, chosen):
    """`note`, with the tokens' logits."""
    logits = tl.load(row + tokens, mask=chosen, other=0.0)
    return note(found, values, count, tokens, logits, chosen)


@triton.jit
def lower_listed(row, found, values, count, BLOCK: tl.constexpr):
    """Each logit becomes the least of those listed for it, if that is less."""
    tl.debug_barrier()  # the list is written, and what it was made from is read
    for begin in range(0, count, BLOCK):
        place = begin + tl.arange(0, BLOCK)  # [BLOCK]
        inside = place < count
        tokens = tl.load(found + place, mask=inside, other=0)
        tl.atomic_min(row + tokens, tl.load(values + place, mask=inside, other=0.0), mask=inside)
    tl.debug_barrier()


@triton.jit
def ban_listed(row, found, values, count, V, BLOCK: tl.constexpr):
    """Removes the tokens listed, unless nothing were left of the row."""
    if count > 0:
        tl.debug_barrier()
        for begin in range(0, count, BLOCK):
            place = begin + tl.arange(0, BLOCK)
            inside = place < count
            tl.store(row + tl.load(found + place, mask=inside, other=0), -_INF, mask=inside)
        tl.debug_barrier()
        if _is_empty(row, V, BLOCK):
            for begin in range(0, count, BLOCK):
                place = begin + tl.arange(0, BLOCK)
                inside = place < count
                tokens = tl.load(found + place, mask=inside, other=0)
                tl.store(row + tokens, tl.load(values + place, mask=inside, other=0.0), mask=inside)
        tl.debug_barrier()


@triton.jit
def _is_empty(row, V, BLOCK: tl.constexpr):
    """Whether all of the row is −inf; most often the first tile tells."""
    begin, num_left = 0, 0
    while (begin < V) & (num_left == 0):
        ids = begin + tl.arange(0, BLOCK)
        values = tl.load(row + ids, mask=ids < V, other=-_INF)
        num_left = tl.sum((values != -_INF).to(tl.int32), 0)
        begin += BLOCK
    return num_left == 0
