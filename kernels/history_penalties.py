"""DRY and the repetition penalty over a range, for one row and its sequence, as Triton device functions.

A sequence is (runs int64, keys int32, how many keys there are): see history_table.Block. A list is (found, values).
"""

# mypy: allow-incomplete-defs

import math

import triton
import triton.language as tl

from .history_lists import lower_listed, note
from .history_rules import MAX_PENALTY

_LOG_MAX_PENALTY: tl.constexpr = tl.constexpr(math.log(MAX_PENALTY))


@triton.jit
def spelled(keys):
    """The tokens of `keys`."""
    return tl.where(keys < 0, ~keys, keys)


@triton.jit
def subtract_dry(row, sequence, lists, limits, logarithms, BLOCK: tl.constexpr):
    """`limits`: (shortest length that counts, range or 0); `logarithms`: fp64, of (multiplier, base)."""
    runs, keys, num_tokens = sequence
    found, values = lists
    exponents = values.to(tl.pointer_type(tl.int32), bitcast=True)
    allowed, window = limits
    last = num_tokens - 1
    first = tl.where(window > 0, tl.maximum(num_tokens - window, 0), 0)
    key = tl.load(keys + last)
    count = 0
    upcoming = _load_keys(keys, first + tl.arange(0, BLOCK), last)
    # After a breaker there is no match, and in `runs` none that could go on.
    for begin in range(first, tl.where(key < 0, first, last), BLOCK):
        ends = begin + tl.arange(0, BLOCK)  # [BLOCK]
        is_match = upcoming == key
        upcoming = _load_keys(keys, ends + BLOCK, last)  # memory is far: a tile ahead
        following = tl.load(keys + ends + 1, mask=is_match, other=-1)
        lengths = tl.minimum(_lengthen(runs + last - ends, last, is_match), ends - first + 1)
        chosen = is_match & (following >= 0) & (lengths >= allowed)
        if tl.sum(chosen.to(tl.int32), 0) > 0:
            count = note(found, exponents, count, following, lengths - allowed, chosen)
    tl.debug_barrier()
    for begin in range(0, count, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        is_listed = place < count
        logits = tl.load(row + tl.load(found + place, mask=is_listed, other=0), mask=is_listed, other=0.0)
        penalties = _penalty(tl.load(exponents + place, mask=is_listed, other=0), logarithms)
        tl.store(values + place, logits - penalties, mask=is_listed)
    lower_listed(row, found, values, count, BLOCK)


@triton.jit
def _load_keys(keys, ends, last):
    """Breakers, which match nothing, beyond the end."""
    return tl.load(keys + ends, mask=ends < last, other=-1)


@triton.jit
def _lengthen(runs, last, is_match):
    """int32: the lengths of these matches; `runs` says so from now on. Asked for twice, it is the same."""
    former = tl.load(runs, mask=is_match, other=-1)
    at, length = (former >> 32).to(tl.int32), former.to(tl.int32)
    length = tl.where(at == last, length, tl.where(at == last - 1, length + 1, 1))
    tl.store(runs, (last.to(tl.int64) << 32) | length.to(tl.int64), mask=is_match)
    return length


@triton.jit
def _penalty(exponents, logarithms):
    log_multiplier, log_base = logarithms
    return tl.exp(tl.minimum(exponents.to(tl.float64) * log_base + log_multiplier, _LOG_MAX_PENALTY)).to(tl.float32)


@triton.jit
def penalise_repetition(row, sequence, values, window, penalty, older_penalty, BLOCK: tl.constexpr):
    """Tokens of the older half of the window first: those of the newer one are then done over."""
    _, keys, num_tokens = sequence
    inside = tl.where(window > 0, tl.minimum(window, num_tokens), num_tokens)
    first = num_tokens - inside
    middle = first + inside // 2
    tl.debug_barrier()
    for begin in range(first, num_tokens, BLOCK):
        place = begin + tl.arange(0, BLOCK)  # [BLOCK]
        is_seen = place < num_tokens
        tokens = spelled(tl.load(keys + place, mask=is_seen, other=0))
        tl.store(values + place - first, tl.load(row + tokens, mask=is_seen, other=0.0), mask=is_seen)
    tl.debug_barrier()
    _penalise(row, keys, values - first, first, middle, older_penalty, BLOCK)
    tl.debug_barrier()
    _penalise(row, keys, values - first, middle, num_tokens, penalty, BLOCK)
    tl.debug_barrier()


@triton.jit
def _penalise(row, keys, values, first, end, penalty, BLOCK: tl.constexpr):
    for begin in range(first, end, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        is_seen = place < end
        tokens = spelled(tl.load(keys + place, mask=is_seen, other=0))
        logits = tl.load(values + place, mask=is_seen, other=0.0)
        tl.store(row + tokens, tl.where(logits > 0, tl.div_rn(logits, penalty), logits * penalty), mask=is_seen)
