"""The draw from what a program left of a line, as Triton device functions of one program.

Plain: Gumbel-max over the logits. Adaptive-p draws from logits that say how near a token's probability is to a target.
Skew draws from the weights F(i)^a − F(i − 1)^a, a = e^skew, F the sums of probability in descending order: the
logarithm of such a weight is a ln F(i) + ln(1 − (1 − p(i) / F(i))^a), in which nothing cancels.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .philox_triton import gumbel_exact, philox_word
from .sampling_draw import DRAW, NO_TOKEN, largest
from .sampling_line import moments, tile_of
from .sampling_program import DECAY, IS_ADAPTIVE, IS_MIROSTAT, IS_SKEWED, RATE, SKEW, TARGET, TAU
from .sampling_row import log_of
from .sampling_sort import sort_line

_INF: tl.constexpr = tl.constexpr(float("inf"))
_FLOOR: tl.constexpr = tl.constexpr(-100.0)
"""Of logits below the largest, where their weights are skewed."""
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_PEAK: tl.constexpr = tl.constexpr(5.0)
_SHARPNESS: tl.constexpr = tl.constexpr(10.0)
_WIDTH: tl.constexpr = tl.constexpr(0.3)


@triton.jit
def choose(line, is_sorted, best, slot, noise, CAPACITY: tl.constexpr, TILE: tl.constexpr):
    """int32: the token drawn, −1 where the largest logit is not finite; Mirostat's or adaptive-p's state follows it."""
    ops, numbers, state = slot[0], slot[1], slot[2]
    is_adaptive, is_skewed = tl.load(ops + IS_ADAPTIVE) != 0, tl.load(ops + IS_SKEWED) != 0
    is_mirostat = tl.load(ops + IS_MIROSTAT) != 0
    logits, ids, num, has_ids = line
    mass, target = tl.full((), 1.0, tl.float64), tl.full((), 0.0, tl.float64)
    if is_adaptive | is_skewed | is_mirostat:
        mass, _mean, _sigma, _num, _least = moments(line, best, TILE)
    if is_adaptive:
        target = _adapted_target(numbers, state)
    if is_skewed & (is_sorted == 0):
        sort_line(line, CAPACITY)
        has_ids = num * 0 + 1
    token = tl.full((), -1, tl.int32)
    if tl.abs(best) < _INF:
        transform = (is_adaptive, target, is_skewed, tl.exp(tl.load(numbers + SKEW)))
        token, logit = _draw((logits, ids, num, has_ids), best, mass, noise, transform, TILE // 4)
        log_p = (logit - best).to(tl.float64) - tl.log(mass)
        if is_mirostat:
            surprise = -log_p / _LN_2
            mu = tl.load(state) - tl.load(numbers + RATE) * (surprise - tl.load(numbers + TAU))
            tl.store(state, mu.to(tl.float32))
        if is_adaptive:
            decay = tl.load(numbers + DECAY)
            tl.store(state, (tl.load(state) * decay + tl.exp(log_p)).to(tl.float32))
            tl.store(state + 1, (tl.load(state + 1) * decay + 1).to(tl.float32))
    return token


@triton.jit
def _adapted_target(numbers, state):
    """2 × the target − the average of what was chosen, within 0 … 1."""
    average = tl.load(state).to(tl.float64) / tl.load(state + 1)
    return tl.minimum(tl.maximum(2 * tl.load(numbers + TARGET) - average, 0.0), 1.0)


@triton.jit
def _draw(line, best, mass, noise, transform, TILE: tl.constexpr):
    """(id int32, logit fp32 before the transform) of the winner; NO_TOKEN where none is left. `mass` fp64 is
    Σ e^(logit − best); `transform`: (is adaptive, its target, is skewed, its a). A skewed line is sorted."""
    position, epoch, key0, key1 = noise
    score, token, logit = tl.full((), -_INF, tl.float32), tl.full((), NO_TOKEN, tl.int32), best + 0.0
    before = tl.full((), 0.0, tl.float64)
    for start in range(0, line[2], TILE):
        values, ids, inside = tile_of(line, start, TILE)
        scores = values
        if transform[0]:
            scores = tl.where(values > -_INF, _adapted(values, best, mass, transform[1]), -_INF)
        if transform[2]:
            weights = tl.exp(tl.maximum(values - best, _FLOOR).to(tl.float64))
            sums = before + tl.cumsum(weights, 0)
            scores = tl.where(values > -_INF, _skewed(weights, sums, mass, transform[3]), -_INF)
            before += tl.sum(weights, 0)
        scores += gumbel_exact(philox_word(position, epoch, ids, key0, key1, DRAW))
        a_score, a_token = largest(tl.where(inside, scores, -_INF), ids)
        if (a_score > score) | ((a_score == score) & (a_token < token) & (a_score > -_INF)):
            score, token = a_score, a_token
            logit = tl.max(tl.where(inside & (ids == a_token), values, -_INF), 0)
    return token, logit


@triton.jit
def _adapted(values, best, mass, target):
    """fp32 logits of adaptive-p: highest where the probability is the target's."""
    p = tl.exp((values - best).to(tl.float64)) / mass
    distance = tl.abs(p - target) / _WIDTH
    drop = distance * distance * _SHARPNESS / (1 + distance)
    return (-drop + _PEAK).to(tl.float32)


@triton.jit
def _skewed(weights, sums, mass, a):
    """fp32 logarithms of skewed weights, from fp64 weights and their sums up to and with each."""
    share = tl.minimum(weights / sums, 1.0)
    near = -share * (1 + share * (0.5 + share * (1.0 / 3)))
    power = tl.maximum(a * tl.where(share < 2.0**-20, near, log_of(1 - share)), -1000.0)  # e to it is 0
    near = -power * (1 + power * (0.5 + power * (1.0 / 6)))
    rest = tl.where(power > -(2.0**-20), near, 1 - tl.exp(power))
    return (a * tl.log(sums / mass) + tl.log(rest)).to(tl.float32)
