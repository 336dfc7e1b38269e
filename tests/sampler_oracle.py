"""Samplers in plain Python and fp64, a row at a time, as they are defined: slow, and independent of ours.

Each takes the logits of a row as a list of floats and gives such a list, −inf where a token is removed.
"""

import math
from itertools import pairwise

INF = math.inf


def softmax(logits):
    largest = max(logits)
    weights = [math.exp(value - largest) for value in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy(logits):
    return -math.fsum(p * math.log(p) for p in softmax(logits) if p > 0)


def ranked(logits):
    """Ids in order of (value descending, id ascending)."""
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


def keep(logits, tokens):
    kept = set(tokens)
    return [value if token in kept else -INF for token, value in enumerate(logits)]


def keep_likely(logits, threshold):
    """Tokens with p ≥ threshold, and the most likely one with its equals."""
    p = softmax(logits)
    floor = min(threshold, max(p))
    return keep(logits, [token for token, value in enumerate(p) if value >= floor])


def prefix(tokens, p, mass):
    """The first of `tokens` that reach `mass` together."""
    reached = 0.0
    for count, token in enumerate(tokens, 1):
        reached += p[token]
        if reached >= mass:
            return tokens[:count]
    return tokens


def temperature(logits, value):
    return [logit / max(value, 0.01) for logit in logits]


def dynatemp(logits, low, high, exponent):
    num_left = sum(value > -INF for value in logits)
    share = entropy(logits) / math.log(num_left) if num_left > 1 else 0.0
    return temperature(logits, low + (high - low) * share**exponent)


def quadratic(logits, factor, curve):
    largest = max(logits)
    k, s = factor * (3 - curve) / 2, factor * (curve - 1) / 2
    return [x if x == -INF else largest - k * (x - largest) ** 2 + s * (x - largest) ** 3 for x in logits]


def nsigma(logits, count):
    left = [value for value in logits if value > -INF]
    mean = math.fsum(left) / len(left)
    sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in left) / len(left))
    floor = max(logits) - count * sigma
    return [value if value >= floor else -INF for value in logits]


def top_k(logits, k):
    kth = sorted(logits, reverse=True)[min(k, len(logits)) - 1]
    return [value if value >= kth else -INF for value in logits]


def top_p(logits, mass):
    return keep(logits, prefix(ranked(logits), softmax(logits), mass))


def min_p(logits, share):
    return keep_likely(logits, share * max(softmax(logits)))


def top_a(logits, factor):
    return keep_likely(logits, factor * max(softmax(logits)) ** 2)


def epsilon(logits, value):
    return keep_likely(logits, value)


def eta(logits, value):
    return keep_likely(logits, min(value, math.sqrt(value) * math.exp(-entropy(logits))))


def tfs(logits, share):
    tokens, p = ranked(logits), softmax(logits)
    slopes = [p[b] - p[a] for a, b in pairwise(tokens)]
    curvature = [abs(b - a) for a, b in pairwise(slopes)]
    total, reached, kept = math.fsum(curvature), 0.0, tokens[:1]
    for rank, value in enumerate(curvature):
        reached += value
        if reached <= share * total:
            kept.append(tokens[rank + 1])
    return keep(logits, kept)


def typical(logits, mass):
    p, nats = softmax(logits), entropy(logits)
    left = [token for token, value in enumerate(p) if value > 0]
    return keep(logits, prefix(sorted(left, key=lambda token: abs(-math.log(p[token]) - nats)), p, mass))


def xtc(logits, threshold, acts):
    p = softmax(logits)
    likely = [token for token in ranked(logits) if p[token] >= threshold and logits[token] > -INF]
    return keep(logits, set(range(len(logits))) - set(likely[:-1])) if acts else list(logits)


def mirostat_1(logits, mu):
    best = [logits[token] for token in ranked(logits)[:100] if logits[token] > -INF]
    t = [math.log((i + 2) / (i + 1)) for i in range(len(best) - 1)]
    b = [one - other for one, other in pairwise(best)]
    s = math.fsum(x * y for x, y in zip(t, b, strict=True)) / math.fsum(x * x for x in t)
    e = s - 1
    k = (e * 2**mu / (1 - len(logits) ** -e)) ** (1 / s)
    return top_k(logits, max(1, int(min(k, len(logits)))))


def mirostat_2(logits, mu):
    return keep_likely(logits, 2**-mu)


def adaptive_p(logits, target, average):
    wanted = min(max(2 * target - average, 0), 1)
    distances = [abs(p - wanted) / 0.3 for p in softmax(logits)]
    return [-INF if value == -INF else 5 - 10 * d * d / (1 + d) for value, d in zip(logits, distances, strict=True)]


def skewed_softmax(logits, amount):
    """Probabilities, not logits: differences of powers of the running sum."""
    p, power, before, found = softmax(logits), math.exp(amount), 0.0, [0.0] * len(logits)
    for token in ranked(logits):
        found[token] = min(before + p[token], 1.0) ** power - before**power
        before = min(before + p[token], 1.0)
    return found
