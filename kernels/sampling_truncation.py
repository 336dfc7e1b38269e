"""Top-k, top-p, min-p and the draw for one row, as a Triton device function of one program.

The bound of a small k comes from the groups' maxima, so that walks visit about k groups. Top-p alone is first sought
among tokens at or above the 512th largest maximum; where these do not weigh enough, among all. All thresholds are
keys of logits (sampling_search.py); of equal logits at the end of the nucleus, the lowest ids stay.
"""

# mypy: allow-incomplete-defs
import triton
import triton.language as tl

from .sampling_draw import NO_TOKEN, draw_tile
from .sampling_search import (
    LOWEST_KEY,
    key_value,
    kth_group_max,
    kth_largest,
    list_live,
    live_tile,
    mass_above,
    mass_threshold,
    nth_tied,
    order_key,
)

_NUCLEUS_GROUPS: tl.constexpr = tl.constexpr(512)


@triton.jit
def draw_truncated(
    row, group_max, live, num_groups, V, best, total, top_k, top_p, log_min_p, position, key0, key1,
    GROUP: tl.constexpr, GROUPS_TILE: tl.constexpr, TILE: tl.constexpr, NUM_PIVOTS: tl.constexpr,
):  # fmt: skip
    """int32: the token drawn among those that top-k, top-p and min-p leave of a row.

    `row` fp32 [V], its groups' maxima fp32 [num_groups], room for as many int32 at `live`; `best` is the largest logit,
    finite, and `total` fp64 the weight of all tokens, e^(logit − best)."""
    top = order_key(best)
    floor = _bound(group_max, num_groups, top_k, top_p, top, GROUPS_TILE, NUM_PIVOTS)
    num_live = list_live(group_max, num_groups, floor, live, GROUPS_TILE)
    kept = tl.full((), LOWEST_KEY, tl.int32)
    if top_k > 0:
        kept = kth_largest(row, live, num_live, V, top_k, floor, top, GROUP, TILE, NUM_PIVOTS)
        floor = kept
    cut = V + top_k * 0
    if top_p < 1.0:
        mass, ties = mass_above(row, live, num_live, V, best, floor, GROUP, TILE)
        mass += ties * tl.exp(key_value(floor) - best).to(tl.float64)
        if top_k > 0:
            total = mass
        high = top
        if mass < top_p * total:
            high = tl.maximum(floor, LOWEST_KEY + 1) - 1
            floor = tl.full((), LOWEST_KEY, tl.int32)
            num_live = list_live(group_max, num_groups, floor, live, GROUPS_TILE)
        kept = mass_threshold(row, live, num_live, V, best, top_p * total, floor, high, GROUP, TILE, NUM_PIVOTS)
        cut = _tie_cut(row, live, num_live, V, best, top_p * total, kept, GROUP, TILE)
    lowest = tl.maximum(kept, order_key(best + log_min_p))
    num_live = list_live(group_max, num_groups, lowest, live, GROUPS_TILE)
    score, token = tl.full((), float("-inf"), tl.float32), tl.full((), NO_TOKEN, tl.int32)
    for start in range(0, num_live, TILE // GROUP):
        values, group = live_tile(row, live, num_live, start, V, GROUP, TILE)
        quads = tl.reshape(group[:, None] * (GROUP // 4) + tl.arange(0, GROUP // 4)[None, :], (TILE // 4,))
        ids = tl.reshape(group[:, None] * GROUP + tl.arange(0, GROUP)[None, :], (TILE,))
        keys = order_key(values)
        stays = (keys >= lowest) & ((keys != kept) | (ids <= cut))
        a_score, a_token = draw_tile(tl.where(stays, values, float("-inf")), quads, position, key0, key1, TILE)
        wins = (a_score > score) | ((a_score == score) & (a_token < token))
        score, token = tl.where(wins, a_score, score), tl.where(wins, a_token, token)
    return token


@triton.jit
def _bound(group_max, num_groups, top_k, top_p, top, TILE: tl.constexpr, NUM_PIVOTS: tl.constexpr):
    """int32: a key at or below that of the k-th largest logit; for top-p alone, one that is likely below its end."""
    wanted = tl.where(top_k > 0, top_k, tl.where(top_p < 1.0, _NUCLEUS_GROUPS, num_groups))
    floor = tl.full((), LOWEST_KEY, tl.int32)
    if wanted * 2 <= num_groups:
        floor = kth_group_max(group_max, num_groups, wanted, top, TILE, NUM_PIVOTS)
    return floor


@triton.jit
def _tie_cut(row, live, num_live, V, best, target, kept, GROUP: tl.constexpr, TILE: tl.constexpr):
    """The last id that top-p keeps of the tokens at its threshold `kept`: as many as reach `target`, one at least."""
    mass, ties = mass_above(row, live, num_live, V, best, kept, GROUP, TILE)
    weight = tl.exp(key_value(kept) - best).to(tl.float64)
    cut = V + ties * 0
    if (ties > 1) & (weight > 0):
        num_kept = tl.ceil(tl.maximum(tl.minimum((target - mass) / weight, ties.to(tl.float64)), 1.0)).to(tl.int32)
        if num_kept < ties:
            cut = nth_tied(row, live, num_live, V, kept, num_kept, GROUP, TILE)
    return cut
