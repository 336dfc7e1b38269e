"""Top-k, top-p, min-p and the draw for one row, as Triton device functions of one program.

What a row leaves to search is listed if it fits (sampling_search.py): all thresholds and the draw are then found in
registers. Of equal logits at the end of the nucleus, the lowest ids stay.

Top-p without top-k first asks of the token drawn from the whole row: a winner of all that is in the nucleus is the
winner of the nucleus. Tokens before it weigh at most what the groups do that hold any; where that is not below the
target and the row is flat, they are weighed. Only a token outside has the nucleus searched.
"""

# mypy: allow-incomplete-defs
import triton
import triton.language as tl

from .sampling_draw import draw_groups, draw_listed, keep, upper_scores
from .sampling_row import LOWEST_OPEN_KEY, key_value, order_key
from .sampling_search import (
    bound,
    list_live,
    list_tokens,
    live_groups,
    live_tile,
    load_tokens,
    mass_above,
    mass_of,
    nth_tied,
    threshold_of_few,
    threshold_of_many,
)


@triton.jit
def draw_truncated(
    line, shared, num_groups, V, best, limits, noise, token, logit,
    GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr, TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """int32: the token drawn among those that top-k, top-p and min-p, `limits`, leave of a row.

    `best` is the row's largest logit, finite. For top-p without top-k, `token` is what was drawn from the whole row,
    and `logit` its logit. `shared`: pointers to fp32 [num_groups], each group's largest logit and, for that case, its
    Σ e^(logit − the largest); and to what is written: scores fp32 [num_groups], live groups int32 [num_groups], tokens
    found int64 [CAPACITY]."""
    maxima, sums, scores, listed, found = shared
    group = tl.arange(0, NUM_GROUPS)
    inside = group < num_groups
    most = tl.load(maxima + group, mask=inside, other=float("-inf"))
    top_k, top_p, log_min_p = limits
    keys, top, lowest = order_key(most), order_key(best), order_key(best + log_min_p)
    floor, target, accepted = lowest, top_k.to(tl.float64), lowest > top
    if (top_k > 0) | (top_p < 1.0):
        weights = tl.exp(most - best)
        shares = weights * 0.0
        if top_k <= 0:
            shares = weights * tl.load(sums + group, mask=inside, other=0.0)
            target = top_p * mass_of(shares)
        floor = bound(keys, tl.where(top_k > 0, 1.0, weights), inside, target, top)
        if top_k <= 0:
            is_before = mass_of(tl.where(most >= logit, shares, 0.0)) < target
            if (not is_before) & (floor == LOWEST_OPEN_KEY):
                key = order_key(logit)
                live = (listed, list_live(keys, inside, key, listed), num_groups)
                mass, _, ties = mass_above(line, live, V, best, key, token, GROUP, TILE)
                is_before = mass + ties * tl.exp(logit - best) < target
                floor = tl.where(is_before, floor, key)
            accepted = is_before & (order_key(logit) >= lowest)
            floor = tl.maximum(floor, lowest)  # min-p may end the nucleus
    if not accepted:
        live = (listed, list_live(keys, inside, floor, listed), num_groups)
        num = live[1]
        if num <= CAPACITY:  # each has a token to list
            num = list_tokens(line, live, V, floor, top, found, CAPACITY, GROUP, TILE)
        if num <= CAPACITY:
            token = _draw_of_few(found, num, V, best, floor, lowest, limits, target, noise, CAPACITY)
        else:
            kept = _kept_of_many(line, live, found, V, best, floor, lowest, limits, target, CAPACITY, GROUP, TILE)
            _score(line, live, scores, V, kept, noise, GROUP, TILE)
            most = tl.load(maxima + group, mask=inside, other=float("-inf"))  # anew: registers are few
            reach = tl.load(scores + group, mask=(order_key(most) >= floor) & inside, other=float("-inf"))
            token, _logit = draw_groups(line, reach, kept, V, noise, False, GROUP)
    return token


@triton.jit
def _draw_of_few(found, num, V, best, floor, lowest, limits, target, noise, CAPACITY: tl.constexpr):
    """The token drawn of a row's `num` listed ones, which are all at or above `floor`; `target` is top-k's, or top-p's
    where it stands alone."""
    top_k, top_p = limits[0], limits[1]
    top = order_key(best)
    keys, values, ids = load_tokens(found, num, CAPACITY)
    weights = tl.exp(values - best)
    last, cut = floor, V + num * 0
    for step in range(tl.where(top_k > 0, 0, 1), tl.where(top_p < 1.0, 2, 1)):  # top-k, top-p
        by_mass = step == 1
        if by_mass & (top_k > 0):
            target = top_p * mass_of(tl.where(keys >= last, weights, 0.0))
            num = tl.sum((keys >= last).to(tl.int32), 0)
        last = threshold_of_few(keys, tl.where(by_mass, weights, 1.0), target, last, top, num, 0.0)
    if top_p < 1.0:
        mass = mass_of(tl.where(keys > last, weights, 0.0))
        tied = (keys == last).to(tl.int32)
        num_tied = tl.sum(tied, 0)
        num_kept = num_tied_kept(last, best, target, mass, num_tied)
        if num_kept < num_tied:
            cut = tl.min(tl.where((tied > 0) & (tl.cumsum(tied, 0) == num_kept), ids, V), 0)
    return draw_listed(keep(values, ids, (tl.maximum(last, lowest), last, cut)), ids, noise)


@triton.jit
def _kept_of_many(
    line, live, found, V, best, floor, lowest, limits, target,
    CAPACITY: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What `keep` leaves of a row, found by walks over live groups: all that hold a token at or above `floor`."""
    top_k, top_p = limits[0], limits[1]
    top = order_key(best)
    last, cut = floor, V + floor * 0
    for step in range(tl.where(top_k > 0, 0, 1), tl.where(top_p < 1.0, 2, 1)):  # top-k, top-p
        by_mass = step == 1
        last = threshold_of_many(line, live, V, best, by_mass, target, last, top, found, CAPACITY, GROUP, TILE)
        if top_p < 1.0:
            mass, num_tied, _ties = mass_above(line, live, V, best, last, 0, GROUP, TILE)
            if by_mass:
                num_kept = num_tied_kept(last, best, target, mass, num_tied)
                if num_kept < num_tied:
                    cut = nth_tied(line, live, V, last, num_kept, GROUP, TILE)
            else:
                target = top_p * (mass + num_tied * tl.exp(key_value(last) - best))
    return tl.maximum(last, lowest), last, cut


@triton.jit
def _score(line, live, scores, V, kept, noise, GROUP: tl.constexpr, TILE: tl.constexpr):
    """Writes the largest upper score of the kept tokens of each live group."""
    tl.debug_barrier()
    for start in range(0, live[1], TILE // GROUP):
        group, inside = live_groups(live, start, TILE // GROUP)
        values, ids = live_tile(line, live, start, V, GROUP, TILE)
        quads = tl.reshape(group[:, None] * (GROUP // 4) + tl.arange(0, GROUP // 4)[None, :], (TILE // 4,))
        upper = upper_scores(keep(values, ids, kept), quads, noise, TILE)
        tl.store(scores + group, tl.max(tl.reshape(upper, (TILE // GROUP, GROUP)), 1), mask=inside)
    tl.debug_barrier()


@triton.jit
def num_tied_kept(last, best, target, mass, num_tied):
    """How many tokens at top-p's threshold `last` reach `target` with the `mass` above: one at least; all where they
    weigh nothing."""
    weight = tl.exp(key_value(last) - best).to(tl.float64)
    wanted = tl.where(weight > 0, (target - mass) / weight, num_tied.to(tl.float64))
    return tl.ceil(tl.minimum(tl.maximum(wanted, 1.0), num_tied.to(tl.float64))).to(tl.int32)
