"""The samplers that the fused tail has not built in, in the order each sequence wants them: one launch, one Triton
program for each row, which returns at once where its slot has no program (sampling_program.py).

    logits fp32 [B, V], slots int32 [B], positions int32 [B], a SamplingTable -> token int32 or int64 [B]

A row is worked on in place: passes over its logits gather what a sampler needs, and write down what it leaves. What is
kept moves to the front with its ids, so that after the first truncation a pass is over few tokens. Sums that decide are
fp64; a token whose probability is within 1e-6 of a threshold may fall on the other side than in the reference.

Asserted as for `sample_tail`. Logits of rows with a program are overwritten.
Sources: dynamic temperature and smoothing (kalomaze), top-a (BlinkDL), tail-free sampling (Phénix and Egan), eta and
epsilon (Hewitt et al., 2022), typical (Meister et al., 2023), top-nsigma (Tang et al., 2024), XTC (p-e-w), Mirostat
(Basu et al., 2021), adaptive-p (llama.cpp), skew (exllamav2).
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from . import sampling_params, sampling_program
from .philox_triton import philox_word, uniform
from .sampling_choice import choose
from .sampling_cuts import NUM_ZIPF, best_of_line, least_of_top, num_tail_free, zipf_k
from .sampling_line import largest_logit, moments
from .sampling_program import (
    DIVISOR,
    DROP_MASKED,
    DYN_EXPONENT,
    DYN_MAX,
    DYN_MIN,
    DYNATEMP,
    EPSILON,
    EPSILON_CUTOFF,
    ETA,
    ETA_CUTOFF,
    FIND_BEST,
    LIMIT_K,
    MIN_P,
    MIN_P_SHARE,
    MIROSTAT_2,
    NSIGMA,
    NUM_SIGMAS,
    TFS,
    TFS_SHARE,
    TOP_A,
    TOP_A_FACTOR,
    TOP_K,
    TOP_P,
    TOP_P_MASS,
    TYPICAL_MASS,
    TYPICAL_P,
    XTC,
    XTC_PROBABILITY,
    XTC_THRESHOLD,
)
from .sampling_rewrite import rewrite
from .sampling_row import LOWEST_KEY, is_penalised, log_of, order_key
from .sampling_sort import sort_line
from .sampling_typical import typical_threshold

XTC_COIN: tl.constexpr = tl.constexpr(1)
"""The stream of noise of XTC's coin (wire/noise.py)."""

_INF: tl.constexpr = tl.constexpr(float("inf"))
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_MIN_TEMPERATURE: tl.constexpr = tl.constexpr(sampling_params.MIN_TEMPERATURE)
_ROW_WORDS: tl.constexpr = tl.constexpr(sampling_params.WORDS)
_KEY: tl.constexpr = tl.constexpr(sampling_params.KEY)
_EPOCH: tl.constexpr = tl.constexpr(sampling_params.EPOCH)
_WORDS: tl.constexpr = tl.constexpr(sampling_program.WORDS)


@triton.jit(do_not_specialize=["stride", "found_stride"], do_not_specialize_on_alignment=["slots", "positions", "out"])
def run_programs(
    logits, ids, slots, positions, words, floats, counts, programs, numbers, states, maxima, live, found, last_token,
    out, states_out, V, stride, found_stride,
    GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr, TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """`words` int32 and `floats` fp32 are one memory, and so are `programs` int32 [S, WORDS] and `numbers` fp64
    [S, WORDS / 2]. `states` fp32 [S, 2]. `ids` int32 [B, V], `maxima`, `live` and `found` are room to work in."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    ops = programs + slot * _WORDS
    if tl.load(ops) == 0:
        return
    ints, params = words + slot * _ROW_WORDS, floats + slot * _ROW_WORDS
    noise = (tl.load(positions + row), tl.load(ints + _EPOCH), tl.load(ints + _KEY), tl.load(ints + _KEY + 1))
    slots_own = (ops, numbers + slot * (_WORDS // 2), states + slot * 2, counts + slot * V, params)
    logits, ids = logits + row * V, ids + row * V
    scratch = (maxima + row * stride, live + row * stride, found + row * found_stride)
    token = tl.full((), -1, tl.int32)
    num = tl.full((), 0, tl.int32) + V
    best, num_left = largest_logit((logits, ids, num, num * 0), TILE)
    if tl.abs(best) < _INF:
        num, has_ids, is_sorted, best = _run(
            (logits, ids, num, num * 0), best, num_left, V, slots_own, noise, scratch,
            CAPACITY, GROUP, NUM_GROUPS, TILE,
        )  # fmt: skip
        token = choose((logits, ids, num, has_ids), is_sorted, best, slots_own, noise, CAPACITY, TILE)
    if token >= 0:
        tl.store(last_token + slot, token)
        if is_penalised(params):
            count = counts + slot * V + token
            tl.store(count, tl.load(count) + 1)
    tl.store(out + row, token)
    tl.debug_barrier()
    tl.store(states_out + row * 2, tl.load(states + slot * 2))
    tl.store(states_out + row * 2 + 1, tl.load(states + slot * 2 + 1))


@triton.jit
def _run(
    line, best, num_left, V, slot, noise, scratch,
    CAPACITY: tl.constexpr, GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Everything before the draw: (how many tokens are left, whether ids are written, whether they are sorted, the
    largest logit)."""
    logits, ids, num, has_ids = line
    is_sorted, last = num * 0, num * 0
    limit_k = tl.load(slot[0] + LIMIT_K)
    place = tl.where(num_left == num, 1, 0)  # the first drops what is −inf
    op = tl.load(slot[0] + place)
    while op != 0:
        if (op == TFS) & (is_sorted == 0):
            sort_line((logits, ids, num, has_ids), CAPACITY)
            has_ids, is_sorted = num * 0 + 1, num * 0 + 1
        num, has_ids, is_sorted, best, limit_k, last = _step(
            op, (logits, ids, num, has_ids), is_sorted, best, limit_k, last, V, slot, noise, scratch,
            CAPACITY, GROUP, NUM_GROUPS, TILE,
        )  # fmt: skip
        place += 1
        op = tl.load(slot[0] + place)
    return num, has_ids, is_sorted, best


@triton.jit
def _step(
    op, line, is_sorted, best, limit_k, last, V, slot, noise, scratch,
    CAPACITY: tl.constexpr, GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One sampler: what `_run` gives, top-k's k, and the key of the last of the best."""
    num, has_ids = line[2], line[3]
    numbers, state = slot[1], slot[2]
    mass, mean, sigma = tl.full((), 1.0, tl.float64), tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    least, num_left = best, num
    if _weighs(op):
        mass, mean, sigma, num_left, least = moments(line, best, TILE)
    lowest, cut = num * 0 + (LOWEST_KEY + 1), num * 0 + V
    scale = tl.load(numbers + DIVISOR).to(tl.float32)
    acts, moves = num == num, num * 0 + 1
    if op < NSIGMA:
        moves = (op == DROP_MASKED).to(tl.int32)
        if op == DYNATEMP:
            scale = _dynamic(numbers, tl.log(mass) - mean, num_left)
    elif op < TOP_K:
        delta = _floor(op, numbers, state, tl.log(mass), mean, sigma).to(tl.float32)
        lowest = tl.minimum(order_key(best + delta), order_key(best))
    elif op < TFS:
        by_mass = op == TOP_P
        target = tl.where(op == FIND_BEST, NUM_ZIPF, limit_k).to(tl.float64)
        target = tl.where(by_mass, tl.load(numbers + TOP_P_MASS) * mass, target)
        last, cut = best_of_line(line, best, by_mass, target, scratch, CAPACITY, GROUP, NUM_GROUPS, TILE)
        lowest = tl.maximum(last, lowest)
        acts = op != FIND_BEST
    elif op == TFS:
        num = num_tail_free(line, best, tl.load(numbers + TFS_SHARE), V, TILE // 4)
        acts = num < 0
    elif op == TYPICAL_P:
        target = tl.load(numbers + TYPICAL_MASS) * mass
        lowest, cut = typical_threshold(line, best, mean, least, target, V, TILE // 2)
    elif op == XTC:
        acts = _coin(numbers, noise)
        if acts:
            lowest = order_key(best + (log_of(tl.load(numbers + XTC_THRESHOLD)) + tl.log(mass)).to(tl.float32))
            num_top, cut = least_of_top(line, lowest, TILE)
            acts = num_top > 1
    else:
        limit_k = zipf_k(line, last, best, tl.load(state), V, scratch, GROUP, TILE)
        acts = num < 0
    if acts:
        num, best = rewrite(op, line, moves, best, mean, scale, (lowest, lowest, cut), slot, TILE)
        has_ids = tl.where(moves != 0, 1, has_ids)
        is_sorted = tl.where(moves != 0, is_sorted, 0)
    return num, has_ids, is_sorted, best, limit_k, last


@triton.jit
def _weighs(op):
    """Whether a step is about probabilities, or needs other sums over all tokens."""
    is_floor = (op >= NSIGMA) & (op < TOP_K) & (op != MIN_P)
    return is_floor | (op == DYNATEMP) | (op == TOP_P) | (op == TYPICAL_P) | (op == XTC)


@triton.jit
def _floor(op, numbers, state, log_mass, mean, sigma):
    """How far below the largest logit tokens are kept, fp64 and at most 0 unless nothing but that one is. A probability
    p is a logit of ln p + ln Σ e^(l − b) relative to the largest, b."""
    delta = -log_mass
    if op == MIN_P:
        delta = tl.log(tl.load(numbers + MIN_P_SHARE))
    elif op == NSIGMA:
        delta = -tl.load(numbers + NUM_SIGMAS) * sigma
    elif op == TOP_A:
        delta = tl.log(tl.load(numbers + TOP_A_FACTOR)) - log_mass
    elif op == EPSILON_CUTOFF:
        delta = tl.log(tl.load(numbers + EPSILON)) + log_mass
    elif op == ETA_CUTOFF:
        log_eta = tl.log(tl.load(numbers + ETA))
        delta = tl.minimum(log_eta, 0.5 * log_eta - (log_mass - mean)) + log_mass
    elif op == MIROSTAT_2:
        delta = log_mass - tl.load(state).to(tl.float64) * _LN_2
    return delta


@triton.jit
def _dynamic(numbers, entropy, num):
    """The temperature fp32 for an entropy, fp64 nats, over `num` tokens."""
    share = tl.where(num > 1, entropy / tl.log(tl.maximum(num, 2).to(tl.float64)), 0.0)
    power = tl.exp(tl.load(numbers + DYN_EXPONENT) * log_of(tl.minimum(share, 1.0)))
    low = tl.load(numbers + DYN_MIN)
    scale = low + (tl.load(numbers + DYN_MAX) - low) * power
    return tl.maximum(scale, _MIN_TEMPERATURE).to(tl.float32)


@triton.jit
def _coin(numbers, noise):
    position, epoch, key0, key1 = noise
    word = philox_word(position, epoch, position * 0, key0, key1, XTC_COIN)
    return uniform(word) < tl.load(numbers + XTC_PROBABILITY)
