"""The Gumbel-max draw, as Triton device functions.

A token's score is fl(logit + noise). With noise known to ± NEAR_SLACK, only tokens whose upper score reaches the
largest lower score can win; addition is monotonic in fp32, so that holds for rounded scores too. Of a row's groups of
tokens only one holds any, in nearly every draw, and only its noise is computed exactly.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .philox_triton import NEAR_SLACK, gumbel_exact, gumbel_near, philox_tile, philox_word
from .sampling_row import load_logits, order_key

DRAW: tl.constexpr = tl.constexpr(0)
"""The stream of noise that draws tokens (wire/noise.py)."""

NO_TOKEN: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def upper_scores(values, quads, noise, TILE: tl.constexpr):
    """Scores fp32 [TILE] with the noise at the top of what it may be, of the ids 4q … 4q + 3 of `quads` [TILE / 4]."""
    position, epoch, key0, key1 = noise
    words = philox_tile(position, epoch, quads, key0, key1, DRAW, TILE)
    return values + (gumbel_near(words) + NEAR_SLACK)


@triton.jit
def lower_bound(upper):
    """At most the lower score of the token of this upper score: two slacks lie between, and three roundings."""
    return upper - (2.25 * NEAR_SLACK + tl.abs(upper) * 2.0**-22)


@triton.jit
def draw_listed(values, ids, noise):
    """The id of the winner among `values` fp32 [N], logits of any `ids` int32 [N]; removed ones are −inf."""
    position, epoch, key0, key1 = noise
    exact = gumbel_exact(philox_word(position, epoch, ids, key0, key1, DRAW))
    _, token = largest(values + exact, ids)
    return token


@triton.jit
def draw_groups(line, reach, kept, V, noise, is_greedy, GROUP: tl.constexpr):
    """(id int32, logit fp32) of the winner among the tokens of a row that are `kept`. `reach` fp32 [N]: the largest
    upper score of each group's kept tokens, −inf where there is none; for a greedy row, the largest logit."""
    position, epoch, key0, key1 = noise
    group = tl.arange(0, reach.shape[0])
    best = tl.max(reach, 0)
    floor = tl.where(is_greedy, best, lower_bound(best))
    score, token, logit = tl.full((), float("-inf"), tl.float32), tl.full((), NO_TOKEN, tl.int32), best
    one = tl.min(tl.where(reach >= floor, group, NO_TOKEN), 0)
    while one < NO_TOKEN:  # seldom more than once
        ids = one * GROUP + tl.arange(0, GROUP)
        values = keep(load_logits(line, ids, ids < V), ids, kept)
        scores = values
        if not is_greedy:
            scores += gumbel_exact(philox_word(position, epoch, ids, key0, key1, DRAW))
        a_score, a_token = largest(scores, ids)
        if a_score > score:
            score, token, logit = a_score, a_token, tl.max(tl.where(ids == a_token, values, float("-inf")), 0)
        later = tl.min(tl.where((reach >= floor) & (group > one), group, NO_TOKEN), 0)
        one = tl.where(is_greedy, NO_TOKEN, later)
    return token, logit


@triton.jit
def keep(values, ids, kept):
    """`values` with −inf for what is below the key `lowest`, or at the key `last` and beyond the id `cut`."""
    lowest, last, cut = kept
    keys = order_key(values)
    return tl.where((keys >= lowest) & ((keys != last) | (ids <= cut)), values, float("-inf"))


@triton.jit
def largest(values, ids):
    """(value fp32, id int32) of the largest of `values` fp32 [N], the lowest of `ids` where several are equal."""
    value = tl.max(values, 0)
    return value, tl.min(tl.where(values == value, ids, NO_TOKEN), 0)
