"""A row of logits that shrinks in place, as Triton device functions of one program.

A line is (logits fp32 pointer, ids int32 pointer, how many there are, whether the ids are written). Until they are, a
token's place is its id. Removed tokens are −inf or gone; those that stay keep their order, so equal logits stand in the
order of their ids unless a line was sorted, and then too. Passes are over tiles of TILE places.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .sampling_search import of_fours

_INF: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def tile_of(line, start, TILE: tl.constexpr):
    """(logits fp32 [TILE], −inf beyond the end; ids int32 [TILE]; mask)."""
    logits, ids, num, has_ids = line
    place = start + tl.arange(0, TILE)
    inside = place < num
    values = tl.load(logits + place, mask=inside, other=-_INF)
    written = place < tl.where(has_ids != 0, num, 0)
    return values, tl.load(ids + place, mask=written, other=place), inside


@triton.jit
def moments(line, best, TILE: tl.constexpr):
    """Of the tokens left, with b the largest logit: (m = Σ e^(l − b), Σ (l − b) e^(l − b) / m, the standard deviation
    of l over the population, all fp64; how many there are, the least l). The entropy is ln m minus the second."""
    mass = tl.zeros((TILE // 4,), tl.float64)
    tilt, first, second = mass, mass, mass
    num = tl.zeros((TILE // 4,), tl.int32)
    least = tl.full((TILE,), _INF, tl.float32)
    for start in range(0, line[2], TILE):
        values, _, _ = tile_of(line, start, TILE)
        left = values > -_INF
        below = tl.where(left, values - best, 0.0)
        weights = tl.where(left, tl.exp(below), 0.0)
        mass += of_fours(weights).to(tl.float64)
        tilt += of_fours(weights * below).to(tl.float64)
        first += of_fours(below).to(tl.float64)
        second += of_fours(below.to(tl.float64) * below)
        num += of_fours(left.to(tl.int32))
        least = tl.minimum(least, tl.where(left, values, _INF))
    total, count = tl.sum(mass, 0), tl.sum(num, 0)
    average = tl.sum(first, 0) / count
    variance = tl.maximum(tl.sum(second, 0) / count - average * average, 0.0)
    return total, tl.sum(tilt, 0) / total, tl.sqrt(variance), count, tl.min(least, 0)


@triton.jit
def largest_logit(line, TILE: tl.constexpr):
    """(fp32, how many are not −inf); +inf where there is a NaN."""
    best = tl.full((TILE,), -_INF, tl.float32)
    num = tl.zeros((TILE,), tl.int32)
    for start in range(0, line[2], TILE):
        values, _, _ = tile_of(line, start, TILE)
        best = tl.maximum(best, tl.where(values < _INF, values, _INF))
        num += (values > -_INF).to(tl.int32)
    return tl.max(best, 0), tl.sum(num, 0)


@triton.jit
def put(line, start, values, ids, inside, num_kept, moves, TILE: tl.constexpr):
    """Writes a tile that was read from `start`: in its place, or, where `moves` is not 0, without the tokens at −inf
    behind the `num_kept` before. The number kept in all."""
    kept = tl.where(moves != 0, (values > -_INF).to(tl.int32), inside.to(tl.int32))
    # A branch on `moves` instead is what a compiler fails on.
    place = tl.where(moves != 0, num_kept + tl.cumsum(kept, 0) - 1, start + tl.arange(0, TILE))
    tl.debug_barrier()  # all of the tile is read before any of it is written over
    tl.store(line[0] + place, values, mask=kept > 0)
    tl.store(line[1] + place, ids, mask=tl.where(moves != 0, kept, 0) > 0)
    return num_kept + tl.sum(kept, 0)


@triton.jit
def group_maxima(line, maxima, GROUP: tl.constexpr, TILE: tl.constexpr):
    """Writes the largest logit of each GROUP places to `maxima`."""
    tl.debug_barrier()
    for start in range(0, line[2], TILE):
        values, _, _ = tile_of(line, start, TILE)
        group = start // GROUP + tl.arange(0, TILE // GROUP)
        most = tl.max(tl.reshape(values, (TILE // GROUP, GROUP)), 1)
        tl.store(maxima + group, most, mask=group * GROUP < line[2])
    tl.debug_barrier()
