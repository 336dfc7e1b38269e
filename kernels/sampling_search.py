"""Exact thresholds of top-k and top-p over one row of logits, as Triton device functions of one program.

A row is cut into groups of GROUP neighbouring ids, of which the largest logit is known. A walk visits the live groups,
an ascending list of those that can hold a token at or above some bound. Thresholds are found on `order_key`, the
order-preserving integer of an fp32: NUM_PIVOTS numbers between two bounds are compared with every live logit in one
walk, which divides the distance by NUM_PIVOTS + 1, until the bounds meet. No value is approximated: the
result is the very logit that crosses the target.

The k-th largest of the groups' maxima bounds the k-th largest logit from below, since k groups hold one at least as
large; so a search for a small k walks about k groups.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

LOWEST_KEY: tl.constexpr = tl.constexpr(-0x7F80_0001)
"""`order_key` of −inf."""


@triton.jit
def order_key(values):
    """int32 in the order of fp32 `values`, which are not NaN; −0 is 0."""
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFF_FFFF)


@triton.jit
def key_value(key):
    """The fp32 of an `order_key`."""
    return (key ^ ((key >> 31) & 0x7FFF_FFFF)).to(tl.float32, bitcast=True)


@triton.jit
def live_tile(row, live, num_live, start, V, GROUP: tl.constexpr, TILE: tl.constexpr):
    """(logits fp32 [TILE], group ids int32 [TILE / GROUP]) of live groups `start`, `start` + 1, …; −inf beyond."""
    place = start + tl.arange(0, TILE // GROUP)
    group = tl.load(live + place, mask=place < num_live, other=0)
    ids = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]  # [TILE / GROUP, GROUP]
    values = tl.load(row + ids, mask=(place < num_live)[:, None] & (ids < V), other=float("-inf"))
    return tl.reshape(values, (TILE,)), group


@triton.jit
def list_live(group_max, num_groups, floor, live, TILE: tl.constexpr):
    """Writes the ids of groups whose largest logit has a key ≥ `floor` to `live`, ascending, and returns how many."""
    tl.debug_barrier()  # others may still be reading the list
    num_live = floor * 0
    for start in range(0, num_groups, TILE):
        group = start + tl.arange(0, TILE)
        inside = group < num_groups
        values = tl.load(group_max + group, mask=inside, other=float("-inf"))
        keep = ((order_key(values) >= floor) & inside).to(tl.int32)
        tl.store(live + num_live + tl.cumsum(keep, 0) - 1, group, mask=keep > 0)
        num_live += tl.sum(keep, 0)
    tl.debug_barrier()
    return num_live


@triton.jit
def kth_group_max(group_max, num_groups, k, top, TILE: tl.constexpr, NUM_PIVOTS: tl.constexpr):
    """int32: the key of the k-th largest of fp32 [num_groups], of which the largest key is `top`; k ≤ num_groups."""
    low, high = tl.full((), LOWEST_KEY, tl.int64), top.to(tl.int64)
    while low < high:
        step, pivots = _pivots(low, high, NUM_PIVOTS)
        counts = tl.zeros((NUM_PIVOTS,), tl.int32)
        for start in range(0, num_groups, TILE):
            group = start + tl.arange(0, TILE)
            values = tl.load(group_max + group, mask=group < num_groups, other=float("-inf"))
            counts += tl.sum((order_key(values)[:, None] >= pivots[None, :]).to(tl.int32), 0)
        low, high = _narrow(low, high, step, counts >= k)
    return low.to(tl.int32)


@triton.jit
def kth_largest(
    row, live, num_live, V, k, floor, top, GROUP: tl.constexpr, TILE: tl.constexpr, NUM_PIVOTS: tl.constexpr
):
    """int32: the key of the k-th largest logit, between the keys `floor` and `top`; `floor` where there are fewer."""
    low, high = floor.to(tl.int64), top.to(tl.int64)
    while low < high:
        step, pivots = _pivots(low, high, NUM_PIVOTS)
        counts = tl.zeros((NUM_PIVOTS,), tl.int32)
        for start in range(0, num_live, TILE // GROUP):
            values, _ = live_tile(row, live, num_live, start, V, GROUP, TILE)
            counts += tl.sum((order_key(values)[:, None] >= pivots[None, :]).to(tl.int32), 0)
        low, high = _narrow(low, high, step, counts >= k)
    return low.to(tl.int32)


@triton.jit
def mass_threshold(
    row, live, num_live, V, best, target, floor, top, GROUP: tl.constexpr, TILE: tl.constexpr, NUM_PIVOTS: tl.constexpr
):
    """int32: the largest key t, `floor` ≤ t ≤ `top`, such that tokens with keys ≥ t weigh `target` or more; `floor`
    where there is none. Weights are e^(logit − best), exponentials fp32, sums fp64."""
    low, high = floor.to(tl.int64), top.to(tl.int64)
    while low < high:
        step, pivots = _pivots(low, high, NUM_PIVOTS)
        mass = tl.zeros((NUM_PIVOTS,), tl.float64)
        for start in range(0, num_live, TILE // GROUP):
            values, _ = live_tile(row, live, num_live, start, V, GROUP, TILE)
            weights = tl.exp(values - best).to(tl.float64)
            reaches = order_key(values)[:, None] >= pivots[None, :]  # [TILE, NUM_PIVOTS]
            mass += tl.sum(tl.where(reaches, weights[:, None], 0.0), 0)
        low, high = _narrow(low, high, step, mass >= target)
    return low.to(tl.int32)


@triton.jit
def mass_above(row, live, num_live, V, best, key, GROUP: tl.constexpr, TILE: tl.constexpr):
    """(fp64 weight of the tokens above `key`, number of tokens at it)."""
    mass, ties = tl.zeros((TILE,), tl.float64), tl.zeros((TILE,), tl.int32)
    for start in range(0, num_live, TILE // GROUP):
        values, _ = live_tile(row, live, num_live, start, V, GROUP, TILE)
        keys = order_key(values)
        mass += tl.where(keys > key, tl.exp(values - best).to(tl.float64), 0.0)
        ties += (keys == key).to(tl.int32)
    return tl.sum(mass, 0), tl.sum(ties, 0)


@triton.jit
def nth_tied(row, live, num_live, V, key, n, GROUP: tl.constexpr, TILE: tl.constexpr):
    """The n-th lowest id, from 1, of the tokens at `key`; V where there are fewer."""
    seen = n * 0
    found = V + n * 0
    for start in range(0, num_live, TILE // GROUP):
        values, group = live_tile(row, live, num_live, start, V, GROUP, TILE)
        tied = (order_key(values) == key).to(tl.int32)
        ids = tl.reshape(group[:, None] * GROUP + tl.arange(0, GROUP)[None, :], (TILE,))
        is_nth = (tied > 0) & (seen + tl.cumsum(tied, 0) == n)
        found = tl.minimum(found, tl.min(tl.where(is_nth, ids, V), 0))
        seen += tl.sum(tied, 0)
    return found


@triton.jit
def _pivots(low, high, NUM_PIVOTS: tl.constexpr):
    """(step int64, keys int32 [NUM_PIVOTS]): low + step, low + 2 step, … cut low … high into pieces of ≤ `step`."""
    step = (high - low + 1 + NUM_PIVOTS) // (NUM_PIVOTS + 1)
    return step, (low + step * (1 + tl.arange(0, NUM_PIVOTS))).to(tl.int32)


@triton.jit
def _narrow(low, high, step, holds):
    """The piece that the answer is in: `holds` is true for the pivots up to it and false above."""
    low += step * tl.sum(holds.to(tl.int64), 0)
    return low, tl.minimum(high, low + step - 1)
