"""The Gumbel-max draw among the tokens of one tile, as a Triton device function.

A token's score is fl(logit + noise). With noise known to ± NEAR_SLACK, only tokens whose upper score reaches the
largest lower score can win; addition is monotonic in fp32, so that holds for rounded scores too. In all but one tile
of two thousand that is one token, whose noise is then computed exactly; else that of the whole tile is.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .philox_triton import NEAR_SLACK, gumbel_exact, gumbel_near, philox_tile, philox_word

DRAW: tl.constexpr = tl.constexpr(0)
"""The stream of noise that draws tokens (wire/noise.py)."""

NO_TOKEN: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def draw_tile(values, quads, position, key0, key1, TILE: tl.constexpr):
    """(score fp32, id int32) of the winner, the lowest id of equal scores, among `values` fp32 [TILE].

    They are the logits of ids 4q … 4q + 3 of `quads` int32 [TILE / 4], in order; removed ones are −inf, none is NaN.
    Without a finite largest logit the score is that logit."""
    ids = tl.reshape(quads[:, None] * 4 + tl.arange(0, 4)[None, :], (TILE,))
    epoch = position * 0
    words = philox_tile(position, epoch, quads, key0, key1, DRAW, TILE)
    near = gumbel_near(words)
    reached = tl.max(values + (near - NEAR_SLACK), 0)
    in_reach = values + (near + NEAR_SLACK) >= reached
    first, last, value = tl.reduce((tl.where(in_reach, ids, NO_TOKEN), tl.where(in_reach, ids, -1), values), 0, _ends)
    if (first == last) | (tl.abs(reached) == float("inf")):
        score = value + gumbel_exact(philox_word(position, epoch, first, key0, key1, DRAW))
    else:
        scores = tl.where(in_reach, values + gumbel_exact(words), float("-inf"))
        score = tl.max(scores, 0)
        first = tl.min(tl.where(scores == score, ids, NO_TOKEN), 0)
    return score, first


@triton.jit
def largest(values, ids):
    """(value fp32, id int32) of the largest of `values` fp32 [N], the lowest of `ids` where several are equal."""
    value = tl.max(values, 0)
    return value, tl.min(tl.where(values == value, ids, NO_TOKEN), 0)


@triton.jit
def _ends(first_a, last_a, value_a, first_b, last_b, value_b):
    """The lowest and the highest of two ids, and the value of the lowest."""
    return (
        tl.minimum(first_a, first_b),
        tl.maximum(last_a, last_b),
        tl.where(first_a < first_b, value_a, value_b),
    )
