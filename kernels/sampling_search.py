"""Exact thresholds of top-k and top-p over one row of logits, as Triton device functions of one program.

A threshold is the largest `order_key` such that the tokens at or above it weigh a target or more: top-k's weights are
1, top-p's e^(logit − the largest). A search keeps the two keys it lies between and what weighs above them, and compares
three keys between them with every weight at once. No value is approximated: the result is the very logit that crosses
the target. Sums of weights are fp64, of fours in fp32.

A row is cut into groups of GROUP neighbouring ids, of which the largest logit is known. Groups' largest logits alone
bound the threshold from below, since each stands for a token; tokens at or above that bound, in the few groups that
hold any, are listed, and a list that fits is searched in registers. Where it does not, the search walks all live groups
until few tokens are left between its two keys, and lists these.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .dispatch import INTERPRETED
from .sampling_row import LOWEST_KEY, LOWEST_OPEN_KEY, entry_id, entry_key, key_value, load_logits, order_key

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_LOWEST_FINITE: tl.constexpr = tl.constexpr(-3.4e38)
_NO_ENTRY: tl.constexpr = tl.constexpr(-(2**63))


@triton.jit
def bound(keys, weights, inside, target, top):
    """int32: a key at or below the threshold of a row, from its groups' largest logits: int32 keys [N] up to `top`, and
    their `weights`; LOWEST_OPEN_KEY where they do not reach `target`, as nobody seeks what is masked. About as many
    groups are live as had to be."""
    is_open = inside & (keys > LOWEST_KEY)
    low = tl.min(tl.where(is_open, keys, top), 0)
    if mass_of(tl.where(is_open, weights, 0.0)) >= target:
        low, _, _, _, _ = _narrow_keys(keys, weights, target, low, top, tl.sum(is_open.to(tl.int32), 0), 0, 0.0, True)
    else:
        low = tl.full((), LOWEST_OPEN_KEY, tl.int32)
    return low


@triton.jit
def list_live(keys, inside, floor, live):
    """Writes which of `keys` int32 [N] are ≥ `floor` to `live`, ascending, and returns how many."""
    tl.debug_barrier()  # others may still be reading the list
    keep = ((keys >= floor) & inside).to(tl.int32)
    tl.store(live + tl.cumsum(keep, 0) - 1, tl.arange(0, keys.shape[0]), mask=keep > 0)
    num_live = tl.sum(keep, 0)
    tl.debug_barrier()
    return num_live


@triton.jit
def live_groups(live, start, NUM: tl.constexpr):
    """(int32 [NUM], mask) of live groups `start`, `start` + 1, …; `live` is (list, how many, how many groups there
    are). A list of all is not read, so that nothing waits for it."""
    listed, num_live, num_groups = live
    place = start + tl.arange(0, NUM)
    num_listed = tl.where(num_live < num_groups, num_live, 0)
    return tl.load(listed + place, mask=place < num_listed, other=place), place < num_live


@triton.jit
def live_tile(line, live, start, V, GROUP: tl.constexpr, TILE: tl.constexpr):
    """(logits fp32 [TILE], −inf beyond; ids int32 [TILE]) of live groups from `start` on."""
    group, inside = live_groups(live, start, TILE // GROUP)
    ids = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]  # [TILE / GROUP, GROUP]
    values = load_logits(line, ids, inside[:, None] & (ids < V))
    return tl.reshape(values, (TILE,)), tl.reshape(ids, (TILE,))


@triton.jit
def list_tokens(line, live, V, low, high, found, CAPACITY: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr):
    """Writes the tokens with keys `low` … `high` to `found`, as int64 `entry_key`, ids ascending, and returns how many.
    No more than CAPACITY are written."""
    tl.debug_barrier()
    num = low * 0
    for start in range(0, live[1], TILE // GROUP):
        values, ids = live_tile(line, live, start, V, GROUP, TILE)
        keys = order_key(values)
        keep = ((keys >= low) & (keys <= high) & (ids < V)).to(tl.int32)
        place = num + tl.cumsum(keep, 0) - 1
        tl.store(found + place, entry_key(values, ids), mask=(keep > 0) & (place < CAPACITY))
        num += tl.sum(keep, 0)
    tl.debug_barrier()
    return num


@triton.jit
def load_tokens(found, num, CAPACITY: tl.constexpr):
    """(keys int32, logits fp32, ids int32) [CAPACITY] of listed tokens; beyond `num`, keys below all and −inf."""
    entries = load_entries(found, num, CAPACITY)
    keys = (entries >> 32).to(tl.int32)
    return keys, tl.where(tl.arange(0, CAPACITY) < num, key_value(keys), float("-inf")), entry_id(entries)


@triton.jit
def load_entries(found, num, CAPACITY: tl.constexpr):
    """int64 [CAPACITY] of listed tokens; beyond `num`, below all."""
    place = tl.arange(0, CAPACITY)
    return tl.load(found + place, mask=place < num, other=_NO_ENTRY)


@triton.jit
def threshold_of_few(keys, weights, target, low, high, num, above):
    """int32: the threshold between `low` and `high`, of which `keys` int32 [N] holds `num` and no key above; what is
    above weighs `above` fp64. `low` where even all do not weigh `target`."""
    low, high, _, _, _ = _narrow_keys(keys, weights, target, low, high, num, 0, above, False)
    return tl.max(tl.where(keys <= high, tl.maximum(keys, low), low), 0)


@triton.jit
def threshold_of_many(
    line, live, V, best, by_mass, target, low, high, found, CAPACITY: tl.constexpr, GROUP: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """int32: the threshold of a row between `low` and `high`, by walks over its live groups; see `threshold_of_few`."""
    num_low, num_above = live[1] * GROUP, live[1] * 0
    above = tl.full((), 0.0, tl.float64)
    by_value = low == low
    while (low < high) & (num_low - num_above > CAPACITY):
        p1, p2, p3 = pivots(low, high, by_value)
        by_value = not by_value
        w1, w2, w3, n1, n2, n3 = _walk(line, live, V, best, by_mass, p1, p2, p3, GROUP, TILE)
        low, high, num_low, num_above, above = narrow(
            low, high, num_low, num_above, above, p1, p2, p3, w1, w2, w3, n1, n2, n3, target
        )
    if low < high:
        num = list_tokens(line, live, V, low, high, found, CAPACITY, GROUP, TILE)
        keys, values, _ = load_tokens(found, num, CAPACITY)
        low = threshold_of_few(keys, _weights(values, best, by_mass), target, low, high, num, above)
    return low


@triton.jit
def mass_above(line, live, V, best, key, before, GROUP: tl.constexpr, TILE: tl.constexpr):
    """(fp64 weight of the tokens above `key`, number of those at it, number of those with ids below `before`)."""
    mass = tl.zeros((TILE // 4,), tl.float64)
    ties, ties_before = tl.zeros((TILE // 4,), tl.int32), tl.zeros((TILE // 4,), tl.int32)
    for start in range(0, live[1], TILE // GROUP):
        values, ids = live_tile(line, live, start, V, GROUP, TILE)
        keys, weights = order_key(values), tl.exp(values - best)
        mass += of_fours(tl.where(keys > key, weights, 0.0)).to(tl.float64)
        tied = (keys == key) & (ids < V)
        ties += of_fours(tied.to(tl.int32))
        ties_before += of_fours((tied & (ids < before)).to(tl.int32))
    return sum3(mass, ties, ties_before)


@triton.jit
def nth_tied(line, live, V, key, n, GROUP: tl.constexpr, TILE: tl.constexpr):
    """The n-th lowest id, from 1, of the tokens at `key`; V where there are fewer."""
    seen = n * 0
    found = V + n * 0
    for start in range(0, live[1], TILE // GROUP):
        values, ids = live_tile(line, live, start, V, GROUP, TILE)
        tied = (order_key(values) == key).to(tl.int32)
        is_nth = (tied > 0) & (seen + tl.cumsum(tied, 0) == n)
        found = tl.minimum(found, tl.min(tl.where(is_nth, ids, V), 0))
        seen += tl.sum(tied, 0)
    return found


@triton.jit
def _narrow_keys(keys, weights, target, low, high, num_low, num_above, above, IS_BOUND: tl.constexpr):
    """(low, high, num_low, num_above, above): as `narrow`, until one key is left between, or few for a bound."""
    base = above + tl.full((), 0.0, tl.float64)
    above = base
    num_above += num_low * 0
    enough, by_value = num_low * 0 + 1, low == low
    while (low < high) & (num_low - num_above > enough):
        p1, p2, p3 = pivots(low, high, by_value)
        by_value = not by_value
        w1, w2, w3 = sum3(
            of_fours(tl.where(keys >= p1, weights, 0.0)).to(tl.float64),
            of_fours(tl.where(keys >= p2, weights, 0.0)).to(tl.float64),
            of_fours(tl.where(keys >= p3, weights, 0.0)).to(tl.float64),
        )
        n1, n2, n3 = sum3(
            of_fours((keys >= p1).to(tl.int32)),
            of_fours((keys >= p2).to(tl.int32)),
            of_fours((keys >= p3).to(tl.int32)),
        )
        low, high, num_low, num_above, above = narrow(
            low, high, num_low, num_above, above, p1, p2, p3, base + w1, base + w2, base + w3, n1, n2, n3, target
        )
        if IS_BOUND:
            enough = 8 + num_above // 8
    return low, high, num_low, num_above, above


@triton.jit
def _walk(line, live, V, best, by_mass, p1, p2, p3, GROUP: tl.constexpr, TILE: tl.constexpr):
    """(fp64 weights × 3, numbers × 3) of the tokens at or above three keys."""
    w1 = tl.zeros((TILE // 4,), tl.float64)
    n1 = tl.zeros((TILE // 4,), tl.int32)
    w2, w3, n2, n3 = w1, w1, n1, n1
    for start in range(0, live[1], TILE // GROUP):
        values, _ = live_tile(line, live, start, V, GROUP, TILE)
        keys, weights = order_key(values), _weights(values, best, by_mass)
        w1 += of_fours(tl.where(keys >= p1, weights, 0.0)).to(tl.float64)
        w2 += of_fours(tl.where(keys >= p2, weights, 0.0)).to(tl.float64)
        w3 += of_fours(tl.where(keys >= p3, weights, 0.0)).to(tl.float64)
        n1 += of_fours((keys >= p1).to(tl.int32))
        n2 += of_fours((keys >= p2).to(tl.int32))
        n3 += of_fours((keys >= p3).to(tl.int32))
    w1, w2, w3 = sum3(w1, w2, w3)
    n1, n2, n3 = sum3(n1, n2, n3)
    return w1, w2, w3, n1, n2, n3


@triton.jit
def of_fours(values):
    """Sums of four neighbours, which one thread holds, [N] -> [N / 4]: fp32 does for them, and fp64 of all would take
    too many registers."""
    return tl.sum(tl.reshape(values, (values.shape[0] // 4, 4)), 1)


@triton.jit
def mass_of(weights):
    """fp64 sum of fp32 `weights` [N]."""
    return tl.sum(of_fours(weights).to(tl.float64), 0)


@triton.jit
def _weights(values, best, by_mass):
    return tl.where(by_mass, tl.exp(values - best), 1.0)


@triton.jit
def pivots(low, high, by_value):
    """Three ascending keys among low + 1 … high: a quarter, half and three quarters of the way, by logit or by key.

    Logits are spread by value, but only keys halve in a bounded number of steps; turns of both do both."""
    start, way = low.to(tl.int64), high.to(tl.int64) - low
    p1, p2, p3 = start + (way + 3) // 4, start + (2 * way + 3) // 4, start + (3 * way + 3) // 4
    if by_value:
        a = tl.maximum(key_value(low), _LOWEST_FINITE).to(tl.float64)
        quarter = (key_value(high).to(tl.float64) - a) * 0.25
        p1 = order_key((a + quarter).to(tl.float32)).to(tl.int64)
        p2 = order_key((a + 2 * quarter).to(tl.float32)).to(tl.int64)
        p3 = order_key((a + 3 * quarter).to(tl.float32)).to(tl.int64)
    p1 = tl.minimum(tl.maximum(p1, start + 1), high)
    p2 = tl.minimum(tl.maximum(p2, start + 1), high)
    p3 = tl.minimum(tl.maximum(p3, start + 1), high)
    return p1.to(tl.int32), p2.to(tl.int32), p3.to(tl.int32)


@triton.jit
def narrow(low, high, num_low, num_above, above, p1, p2, p3, w1, w2, w3, n1, n2, n3, target):
    """(low, high, number of tokens ≥ low, number of those > high, their weight) after a look at three keys."""
    if w3 >= target:
        low, num_low = p3, n3
    elif w2 >= target:
        low, num_low = p2, n2
        high, num_above, above = p3 - 1, n3, w3
    elif w1 >= target:
        low, num_low = p1, n1
        high, num_above, above = p2 - 1, n2, w2
    else:
        high, num_above, above = p1 - 1, n1, w1
    return low, high, num_low, num_above, above


@triton.jit
def sum3(a, b, c):
    """Sums of three tensors [N] in one reduction, but under the interpreter, which calls its sum for each number."""
    if _INTERPRETED:
        return tl.sum(a, 0), tl.sum(b, 0), tl.sum(c, 0)
    else:
        return tl.reduce((a, b, c), 0, _add3)


@triton.jit
def _add3(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2
