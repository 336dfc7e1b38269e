"""The samplers, as batch functions in plain torch: the CPU's path, and the reference of the fused kernels.

    f(logits fp32 [N, V], parameters [N] each) -> logits fp32 [N, V], −inf where a token is removed

Parameters are fp64 columns (int64 where they count), and none is neutral: whoever calls leaves rows out for which a
sampler does nothing. A row's result depends on that row alone, to the bit. What a row removed before stays removed and
counts in no statistic; one token at least always stays. Inputs are left as they are.

Thresholds on probabilities are compared as logits, p ≥ t as l ≥ max + ln Σ e^(l − max) + ln t, so that equal logits
share their fate. Sorted samplers order by (value descending, id ascending). Definitions, l logits, p = softmax(l) over
what is left, H its entropy: see each function; where systems differ, the author's, llama.cpp's or transformers'.
"""

import math

import torch
from torch import Tensor

from .samplers_rows import (
    below_largest,
    descending,
    entropy,
    keep_at_least,
    keep_first,
    partition,
    row_sums,
)

MIN_TEMPERATURE = 0.01
MIROSTAT_BEST = 100
"""Most likely tokens that Mirostat 1 estimates Zipf's exponent from."""
ADAPTIVE_PEAK, ADAPTIVE_SHARPNESS, ADAPTIVE_WIDTH = 5.0, 10.0, 0.3

_SIZES = (256, 4096, 32_768)
"""Numbers of largest logits to look for a threshold in, before all are sorted."""


def mask_tokens(logits: Tensor, allowed: Tensor) -> Tensor:
    """Removes the tokens whose bit is not set: bit i of word i // 32 of `allowed`, int32 [N, ⌈V / 32⌉]."""
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=logits.device)
    bits = allowed.contiguous().view(torch.uint8)[..., None] & places
    return logits.masked_fill(bits.flatten(1)[:, : logits.shape[-1]] == 0, -math.inf)


def penalise(values: Tensor, counts: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor) -> Tensor:
    """Logits of seen tokens, all arguments fp32 [K]. Repetition (Keskar et al., CTRL, 2019): positive logits are
    divided, others multiplied. Then OpenAI's formula: l −= count × frequency + (count > 0) × presence, with the
    `counts` of the output."""
    values = torch.where(values > 0, values / repetition, values * repetition)
    return values - counts * frequency - (counts > 0) * presence


def scale(logits: Tensor, temperature: Tensor) -> Tensor:
    """l ÷ temperature, which is raised to 0.01 where it is lower."""
    return logits / temperature.clamp(min=MIN_TEMPERATURE).float()[:, None]


def scale_dynamically(logits: Tensor, low: Tensor, high: Tensor, exponent: Tensor) -> Tensor:
    """l ÷ (low + (high − low) (H ÷ ln n)^exponent), n the tokens left, raised to 0.01 where it is lower; with a
    single token left H ÷ ln n is 0."""
    _, _, nats = entropy(logits)
    num_left = (logits > -math.inf).count_nonzero(dim=-1)[:, None]
    share = (nats / num_left.double().log()).where(num_left > 1, 0.0).clamp(0, 1)
    temperature = low[:, None] + (high - low)[:, None] * share.pow(exponent[:, None])
    return scale(logits, temperature.squeeze(1))


def bend(logits: Tensor, factor: Tensor, curve: Tensor) -> Tensor:
    """Quadratic sampling (kalomaze): max − k d² + s d³, d = l − max, k = factor (3 − curve) ÷ 2 and
    s = factor (curve − 1) ÷ 2."""
    largest = logits.amax(dim=-1, keepdim=True)
    square = (factor * (3 - curve) / 2).float()[:, None]
    cube = (factor * (curve - 1) / 2).float()[:, None]
    below = logits - largest
    bent = largest + below * below * (cube * below - square)
    return bent.masked_fill(logits == -math.inf, -math.inf)


def keep_nsigma(logits: Tensor, num_sigmas: Tensor) -> Tensor:
    """l ≥ max − n σ (Tang et al., "Top-nσ", 2024), σ² the mean squared deviation of the logits that are left."""
    left = logits > -math.inf
    num_left = left.count_nonzero(dim=-1)[:, None]
    values = logits.double()
    mean = row_sums(values.where(left, 0.0)) / num_left
    variance = row_sums((values - mean).where(left, 0.0).square_()) / num_left
    return keep_at_least(logits, logits.amax(dim=-1, keepdim=True), -num_sigmas[:, None] * variance.sqrt())


def keep_top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Tokens at or above the k-th largest logit, k int64: more than k where there are ties."""
    k = k.clamp(max=logits.shape[-1])
    kth = torch.empty_like(logits[:, :1])
    floor = 0
    for size in (*_SIZES, logits.shape[-1]):
        index = ((k > floor) & (k <= size)).nonzero().flatten()
        if len(index):
            of_rows = k[index]
            largest = _rows(logits, index).topk(int(of_rows.max())).values
            kth[index] = largest.gather(1, of_rows[:, None] - 1)
        floor = max(floor, size)
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: Tensor, mass: Tensor) -> Tensor:
    """The smallest set of most likely tokens whose probability reaches `mass` (Holtzman et al., 2019); the token that
    crosses the threshold is kept."""
    num_kept, last = _nucleus(logits, mass)
    return keep_first(logits, num_kept, last)


def keep_min_p(logits: Tensor, share: Tensor) -> Tensor:
    """p ≥ share × max p (Nguyen et al., 2024)."""
    return keep_at_least(logits, logits.amax(dim=-1, keepdim=True), share.log()[:, None])


def keep_top_a(logits: Tensor, factor: Tensor) -> Tensor:
    """p ≥ factor × (max p)²."""
    largest, log_total = partition(logits)
    return keep_at_least(logits, largest, factor.log()[:, None] - log_total)


def keep_above_epsilon(logits: Tensor, epsilon: Tensor) -> Tensor:
    """p ≥ epsilon (Hewitt et al., 2022)."""
    largest, log_total = partition(logits)
    return keep_at_least(logits, largest, epsilon.log()[:, None] + log_total)


def keep_above_eta(logits: Tensor, eta: Tensor) -> Tensor:
    """p ≥ min(eta, √eta e^−H) (Hewitt et al., 2022)."""
    largest, log_total, nats = entropy(logits)
    log_eta = eta.log()[:, None]
    return keep_at_least(logits, largest, torch.minimum(log_eta, log_eta / 2 - nats) + log_total)


def keep_tail_free(logits: Tensor, share: Tensor) -> Tensor:
    """Tail-free sampling (Phénix and Egan, 2019): with p in descending order over the whole vocabulary and C the
    running sum of |p''|, normalised, rank 0 and each rank i + 1 with C_i ≤ share; never the last rank but of one."""
    if logits.shape[-1] == 1:
        return logits
    values, ids = descending(logits)
    _, below = below_largest(values)
    curvature = below.exp_().diff(dim=-1).diff(dim=-1).abs_().cumsum(dim=-1)
    kept = torch.zeros_like(logits, dtype=torch.bool)
    kept[:, 0] = True
    kept[:, 1:-1] = curvature <= share[:, None] * curvature[:, -1:]
    return _keep_ranks(logits, ids, kept)


def keep_typical(logits: Tensor, mass: Tensor) -> Tensor:
    """The smallest set of most typical tokens whose probability reaches `mass` (Meister et al., 2022), in order of
    (|−ln p − H| ascending, id ascending); the token that crosses the threshold is kept."""
    _, below = below_largest(logits)
    weights = below.exp()
    total = row_sums(weights)
    mean = row_sums(weights * below) / total  # ln p + H = (l − max) − Σ p (l − max)
    distance = (below - mean).abs_().masked_fill_(logits == -math.inf, math.inf)
    ids = distance.sort(dim=-1, stable=True).indices
    before = weights.gather(1, ids).cumsum(dim=-1) < mass[:, None] * total
    kept = torch.ones_like(before)
    kept[:, 1:] = before[:, :-1]
    return _keep_ranks(logits, ids, kept)


def exclude_top_choices(logits: Tensor, threshold: Tensor, acts: Tensor) -> Tensor:
    """XTC (p-e-w, 2024): of the tokens with p ≥ threshold all but the least likely are removed, in rows where `acts`,
    bool [N]. Least likely is the last in order of (value descending, id ascending)."""
    largest, log_total = partition(logits)
    cut = largest + (log_total + threshold.log()[:, None]).float()
    likely = (logits >= cut) & (logits > -math.inf)
    least = logits.where(likely, math.inf).amin(dim=-1, keepdim=True)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    stays = ids.where(likely & (logits == least), -1).amax(dim=-1, keepdim=True)
    return logits.masked_fill(likely & (ids != stays) & acts[:, None], -math.inf)


def keep_mirostat_1(logits: Tensor, mu: Tensor) -> Tensor:
    """Mirostat 1 (Basu et al., 2020): the k most likely, k from `mu`, the largest surprise wanted in bits, and from
    Zipf's exponent s, which is fitted to the hundred best:

        s = Σ t b ÷ Σ t²,  t_i = ln((i + 2) ÷ (i + 1)),  b_i = ln(p_i ÷ p_(i+1))
        k = (e 2^mu ÷ (1 − V^−e))^(1/s),  e = s − 1
    """
    log_size = math.log(logits.shape[-1])
    exponent = _zipf_exponent(logits.topk(min(MIROSTAT_BEST, logits.shape[-1])).values.double())
    e = exponent - 1
    spread = (-torch.expm1(-e * log_size) / e).where(e != 0, log_size)
    log_k = (mu * math.log(2) - spread.log()) / exponent
    k = log_k.nan_to_num(log_size + 1).clamp(0, log_size + 1).exp().long().clamp(max=logits.shape[-1])
    return keep_top_k(logits, k)


def keep_mirostat_2(logits: Tensor, mu: Tensor) -> Tensor:
    """Mirostat 2 (Basu et al., 2020): tokens whose surprise −log2 p is at most `mu`."""
    largest, log_total = partition(logits)
    return keep_at_least(logits, largest, log_total - mu[:, None] * math.log(2))


def adapt(logits: Tensor, target: Tensor, average: Tensor) -> Tensor:
    """Adaptive-p: l = 5 − 10 d² ÷ (1 + d), d = |p − t| ÷ 0.3, t = 2 target − `average`, clamped to [0, 1]: `average`
    is that of the probabilities chosen so far."""
    _, below = below_largest(logits)
    weights = below.exp_()
    wanted = (2 * target - average).clamp(0, 1)[:, None]
    distance = (weights / row_sums(weights) - wanted).abs_() / ADAPTIVE_WIDTH
    adapted = ADAPTIVE_PEAK - ADAPTIVE_SHARPNESS * distance.square() / (1 + distance)
    return adapted.float().masked_fill(logits == -math.inf, -math.inf)


def skew(logits: Tensor, amount: Tensor) -> Tensor:
    """Weights F_i^a − F_(i−1)^a, a = e^amount, F the running sum of p in order of (value descending, id ascending):
    ExLlamaV2's skew of the uniform number that picks from this order. As logits, without cancellation:

        a ln F_i + ln(1 − (1 − p_i ÷ F_i)^a)
    """
    values, ids = descending(logits)
    _, below = below_largest(values)
    weights = below.exp_()
    sums = weights.cumsum(dim=-1)
    power = amount.exp()[:, None]
    share = torch.expm1(power * torch.log1p(-weights / sums)).neg_().log_()
    skewed = (power * (sums / sums[:, -1:]).log_() + share).float()
    return torch.empty_like(logits).scatter_(1, ids, skewed).masked_fill_(logits == -math.inf, -math.inf)


def _nucleus(logits: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens a nucleus holds, int64 [N, 1], and its least logit, fp32 [N, 1]. Sums of weights in descending
    order are sequential, so that they are the same in any of `_SIZES`."""
    largest, below = below_largest(logits)
    target = mass[:, None] * row_sums(below.exp_())
    num_kept = torch.full_like(target, logits.shape[-1], dtype=torch.int64)
    last = torch.full_like(largest, -math.inf)
    pending = torch.arange(len(logits), device=logits.device)
    for size in (*_SIZES, logits.shape[-1]):
        top = _rows(logits, pending).topk(min(size, logits.shape[-1])).values
        weights = (top - largest[pending]).clamp_(min=-100).double().exp_()
        num_before = (weights.cumsum_(dim=-1) < target[pending]).count_nonzero(dim=-1)
        ends = num_before < top.shape[-1]
        found = pending[ends]
        num_kept[found] = num_before[ends, None] + 1
        last[found] = top[ends].gather(1, num_before[ends, None])
        pending = pending[~ends]
        if not len(pending):
            break
    return num_kept, last


def _zipf_exponent(best: Tensor) -> Tensor:
    """fp64 [N, m], descending -> [N]; NaN where fewer than two are left."""
    rank = torch.arange(1, best.shape[-1], dtype=torch.float64, device=best.device)
    steps = ((rank + 1) / rank).log()
    is_pair = best[:, 1:] > -math.inf
    drops = (best[:, :-1] - best[:, 1:]).where(is_pair, 0.0)
    return (steps * drops).sum(dim=-1) / (steps.square() * is_pair).sum(dim=-1)


def _keep_ranks(logits: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
    """`kept` says it of the tokens `ids`, both [N, V]."""
    return logits.masked_fill(~torch.empty_like(kept).scatter_(1, ids, kept), -math.inf)


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    """`tensor[index]`, without a copy where that is all of it."""
    return tensor if len(index) == len(tensor) else tensor[index]
