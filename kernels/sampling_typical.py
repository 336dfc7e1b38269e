"""Locally typical sampling of a line (Meister et al., 2023), as Triton device functions of one program.

The tokens whose surprise is nearest to the entropy are kept until they weigh typical_p, the one that crosses it too.
With b the largest logit, |−ln p − H| is |(l − b) − m|, m the mean of l − b: no logarithm is taken. The distance is
searched for as top-p's threshold is, over the keys of its negative.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .sampling_line import tile_of
from .sampling_row import order_key
from .sampling_search import narrow, of_fours, pivots, sum3

_LOWEST: tl.constexpr = tl.constexpr(-(2**31))
_LEAST_MASS: tl.constexpr = tl.constexpr(1e-30)
"""Of a typical_p of 0, which keeps the nearest token: no nearest token weighs less, since the mean of l − b is at least
−ln V, and the largest logit as near as that."""


@triton.jit
def nearness(values, best, mean):
    """fp32: minus the distance of fp32 `values`."""
    return -tl.abs((values - best).to(tl.float64) - mean).to(tl.float32)


@triton.jit
def typical_threshold(line, best, mean, least, target, V, TILE: tl.constexpr):
    """(int32 key of the least near token kept, the highest id kept at that key). `least` is the line's least logit,
    `target` typical_p × Σ e^(l − b)."""
    low = tl.minimum(order_key(nearness(best, best, mean)), order_key(nearness(least, best, mean)))
    high = order_key(best * 0.0)
    target = tl.maximum(target, _LEAST_MASS)
    num_low, num_above = line[2], line[2] * 0
    above = tl.full((), 0.0, tl.float64)
    by_value = low == low
    while (low < high) & (num_low - num_above > 1):
        p1, p2, p3 = pivots(low, high, by_value)
        by_value = not by_value
        w1, w2, w3, n1, n2, n3 = _walk(line, best, mean, p1, p2, p3, TILE)
        low, high, num_low, num_above, above = narrow(
            low, high, num_low, num_above, above, p1, p2, p3, w1, w2, w3, n1, n2, n3, target
        )
    last = _key_at_most(line, best, mean, low, high, TILE)
    return last, _last_id(line, best, mean, last, target - above, V, TILE)


@triton.jit
def _tile(line, start, best, mean, TILE: tl.constexpr):
    """(keys of nearness int32 [TILE], weights fp32, ids int32); keys beyond the end are below all."""
    values, ids, inside = tile_of(line, start, TILE)
    keys = tl.where(inside, order_key(nearness(values, best, mean)), _LOWEST)
    return keys, tl.exp(values - best), ids


@triton.jit
def _walk(line, best, mean, p1, p2, p3, TILE: tl.constexpr):
    """(fp64 weights × 3, numbers × 3) of the tokens at or above three keys."""
    w1 = tl.zeros((TILE // 4,), tl.float64)
    n1 = tl.zeros((TILE // 4,), tl.int32)
    w2, w3, n2, n3 = w1, w1, n1, n1
    for start in range(0, line[2], TILE):
        keys, weights, _ = _tile(line, start, best, mean, TILE)
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
def _key_at_most(line, best, mean, low, high, TILE: tl.constexpr):
    """The largest key that a token has between `low` and `high`."""
    largest = tl.full((TILE,), _LOWEST, tl.int32)
    for start in range(0, line[2], TILE):
        keys, _, _ = _tile(line, start, best, mean, TILE)
        largest = tl.maximum(largest, tl.where(keys <= high, keys, _LOWEST))
    return tl.maximum(tl.max(largest, 0), low)


@triton.jit
def _last_id(line, best, mean, key, missing, V, TILE: tl.constexpr):
    """The id up to which the tokens at `key`, in order of their ids, weigh `missing`; V − 1 where all do not."""
    low, high = line[2] * 0, line[2] * 0 + V - 1
    mass, num = _tied(line, best, mean, key, high, TILE)
    if num < 2:
        low = high
    while low < high:
        middle = (low + high) // 2
        mass, num = _tied(line, best, mean, key, middle, TILE)
        if mass >= missing:
            high = middle
        else:
            low = middle + 1
    return high


@triton.jit
def _tied(line, best, mean, key, last_id, TILE: tl.constexpr):
    """(fp64 weight, number) of the tokens at `key` with ids up to `last_id`."""
    mass = tl.zeros((TILE // 4,), tl.float64)
    num = tl.zeros((TILE // 4,), tl.int32)
    for start in range(0, line[2], TILE):
        keys, weights, ids = _tile(line, start, best, mean, TILE)
        tied = (keys == key) & (ids <= last_id)
        mass += of_fours(tl.where(tied, weights, 0.0)).to(tl.float64)
        num += of_fours(tied.to(tl.int32))
    return tl.sum(mass, 0), tl.sum(num, 0)
