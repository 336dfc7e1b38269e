"""Where samplers cut a line, as Triton device functions of one program: top-k, top-p, tail-free sampling, the token
that XTC leaves, and Mirostat 1's k. The elementwise floors are in sampling_program_run.py."""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .sampling_line import group_maxima, tile_of
from .sampling_row import LOWEST_KEY, key_value, log_of, order_key
from .sampling_search import bound, list_live, list_tokens, load_entries, mass_above, nth_tied, threshold_of_many
from .sampling_truncation import num_tied_kept

NUM_ZIPF: tl.constexpr = tl.constexpr(100)
"""Tokens that Mirostat 1 estimates the exponent from."""
_PADDED_ZIPF: tl.constexpr = tl.constexpr(128)
_TINY: tl.constexpr = tl.constexpr(1e-9)
"""In place of 0 where logits are flat or few, and k is at one of its ends."""
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_INF: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def best_of_line(
    line, best, by_mass, target, scratch,
    CAPACITY: tl.constexpr, GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """(key of the last token kept, highest place kept at that key): the best tokens that are, or weigh, `target` or
    more. All ties count where they are counted; of those that weigh, no more than it takes."""
    maxima, listed, found = scratch
    num = line[2]
    top = order_key(best)
    live = (listed, tl.cdiv(num, GROUP), tl.cdiv(num, GROUP))
    floor = tl.full((), LOWEST_KEY, tl.int32)
    if num > CAPACITY:
        group_maxima(line, maxima, GROUP, TILE)
        group = tl.arange(0, NUM_GROUPS)
        inside = group < live[2]
        most = tl.load(maxima + group, mask=inside, other=-_INF)
        keys = order_key(most)
        floor = bound(keys, tl.where(by_mass, tl.exp(most - best), 1.0), inside, target, top)
        live = (listed, list_live(keys, inside, floor, listed), live[2])
    logits = (line[0], None, None)
    last = threshold_of_many(logits, live, num, best, by_mass, target, floor, top, found, CAPACITY, GROUP, TILE)
    cut = num + 0
    if by_mass:
        mass, num_tied, _ties = mass_above(logits, live, num, best, last, 0, GROUP, TILE)
        num_kept = num_tied_kept(last, best, target, mass, num_tied)
        if num_kept < num_tied:
            cut = nth_tied(logits, live, num, last, num_kept, GROUP, TILE)
    return last, cut


@triton.jit
def num_tail_free(line, best, z, V, TILE: tl.constexpr):
    """How many tokens of a sorted line tail-free sampling keeps: rank 0, and rank i + 1 while the share of curvature
    up to i, |p(i) − 2 p(i + 1) + p(i + 2)|, is at most `z`. Ranks go on to V, with p = 0 behind the line's end."""
    end = tl.minimum(line[2] + 2, V) - 2
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, end, TILE):
        total += tl.sum(_curvature(line, start, end, best, TILE), 0)
    before = tl.full((), 0.0, tl.float64)
    num = line[2] * 0 + 1
    for start in range(0, end, TILE):
        curvature = _curvature(line, start, end, best, TILE)
        stays = before + tl.cumsum(curvature, 0) <= z * total
        num += tl.sum((stays & (start + tl.arange(0, TILE) < end)).to(tl.int32), 0)
        before += tl.sum(curvature, 0)
    return tl.minimum(num, line[2])


@triton.jit
def _curvature(line, start, end, best, TILE: tl.constexpr):
    """fp64 [TILE] in units of e^best; 0 from rank `end` on."""
    rank = start + tl.arange(0, TILE)
    inside = rank < end
    first, second, third = _weight(line, rank, best), _weight(line, rank + 1, best), _weight(line, rank + 2, best)
    return tl.where(inside, tl.abs(third - second - (second - first)), 0.0)


@triton.jit
def _weight(line, rank, best):
    values = tl.load(line[0] + rank, mask=rank < line[2], other=-_INF)
    return tl.exp((values - best).to(tl.float64))


@triton.jit
def least_of_top(line, lowest, TILE: tl.constexpr):
    """(number of tokens at or above the key `lowest`, place of the least of them: the last where several are)."""
    num = tl.zeros((TILE,), tl.int32)
    least = tl.full((TILE,), 2**31 - 1, tl.int32)
    for start in range(0, line[2], TILE):
        values, _, inside = tile_of(line, start, TILE)
        keys = order_key(values)
        above = inside & (keys >= lowest)
        num += above.to(tl.int32)
        least = tl.minimum(least, tl.where(above, keys, 2**31 - 1))
    key = tl.min(least, 0)
    place = tl.zeros((TILE,), tl.int32)
    for start in range(0, line[2], TILE):
        values, _, inside = tile_of(line, start, TILE)
        here = tl.where(inside & (order_key(values) == key), start + tl.arange(0, TILE), 0)
        place = tl.maximum(place, here)
    return tl.sum(num, 0), tl.max(place, 0)


@triton.jit
def zipf_k(line, last, best, mu, V, scratch, GROUP: tl.constexpr, TILE: tl.constexpr):
    """Mirostat 1's k, int32 of 1 … `V`, for a target surprise of `mu` bits (Basu et al., 2021). `last` is the key of
    the NUM_ZIPF-th largest logit.

    ln k = (mu ln 2 − ln((1 − V^−e) / e)) / s, e = s − 1. The exponent is s = Σ t(i) b(i) / Σ t(i)² over ranks i,
    t(i) = ln((i + 2) / (i + 1)), b(i) = l(i) − l(i + 1): each logit counts with t(rank) − t(rank − 1), for which ranks
    do, without an order in memory."""
    _, listed, found = scratch
    groups = tl.cdiv(line[2], GROUP)
    num = list_tokens(
        (line[0], None, None), (listed, groups, groups), line[2], last + 1, order_key(best), found,
        _PADDED_ZIPF, GROUP, TILE,
    )  # fmt: skip
    place = tl.arange(0, _PADDED_ZIPF)
    entries = load_entries(found, num, _PADDED_ZIPF)
    rank = tl.sum((entries[None, :] > entries[:, None]).to(tl.int32), 1)
    num_ranks = tl.minimum(line[2], NUM_ZIPF)
    below = (key_value((entries >> 32).to(tl.int32)) - best).to(tl.float64)
    slope = tl.sum(tl.where(place < num, below * _share(rank, num_ranks), 0.0), 0)
    tied = tl.where((place >= num) & (place < num_ranks), _share(place, num_ranks), 0.0)
    slope += tl.sum(tied, 0) * tl.where(num < num_ranks, key_value(last) - best, 0.0)
    steps = tl.where(place < num_ranks - 1, _log_ratio(place), 0.0)
    s = tl.maximum(slope, _TINY) / tl.maximum(tl.sum(steps * steps, 0), _TINY)
    e = s - 1
    log_size = tl.log(V.to(tl.float64))
    spread = tl.where(e == 0, log_size, (1 - tl.exp(-e * log_size)) / tl.where(e == 0, 1.0, e))
    log_k = (mu.to(tl.float64) * _LN_2 - log_of(spread)) / s
    k = tl.exp(tl.minimum(tl.maximum(log_k, 0.0), log_size)).to(tl.int32)
    return tl.where(log_k < log_size, tl.maximum(k, 1), V)


@triton.jit
def _share(rank, num_ranks):
    """What the logit at `rank` counts with in Σ t b."""
    to_next = tl.where(rank < num_ranks - 1, _log_ratio(rank), 0.0)
    return to_next - tl.where(rank > 0, _log_ratio(rank - 1), 0.0)


@triton.jit
def _log_ratio(rank):
    """fp64 t of ranks; of none below 0."""
    at = tl.maximum(rank, 0).to(tl.float64)
    return tl.log((at + 2) / (at + 1))
