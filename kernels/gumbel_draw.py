"""Draws by Gumbel-max: the token with the largest logit + noise, the lowest id where that is equal, is a sample of
softmax(logits).

A token that the largest noise does not lift to the largest logit under the smallest noise cannot win, so noise is
computed for the others only, after a second sieve where they are many. Addition is monotonic in fp32 too: the result is
that of all noise, to the bit.
"""

import math

from torch import Tensor

from .philox import CEILING_SPAN, GUMBEL_MAX, GUMBEL_MIN, gumbel_noise, noise_ceiling

_CROWDED_SHARE = 8
"""A row with more than 1/8 of the vocabulary in reach is sieved by all its noise: cheaper than picking ids out."""
_SIEVE_SIZE = 2**18
"""Ids sieved in one go, or one row: 2 MB of words, which stay in a CPU's cache and in memory its allocator keeps."""


def draw_tokens(logits: Tensor, keys: Tensor, positions: Tensor, rewind_epochs: Tensor, *, stream: int) -> Tensor:
    """A draw from each row of fp32 [N, V], by a key [N, 2], an output position [N] and a rewind epoch [N], all int64
    -> int64 [N]."""
    in_reach = logits + GUMBEL_MAX >= logits.amax(dim=-1, keepdim=True) + GUMBEL_MIN
    crowded = (in_reach.count_nonzero(dim=-1) * _CROWDED_SHARE > logits.shape[-1]).nonzero().flatten()
    rows_at_once = max(1, _SIEVE_SIZE // logits.shape[-1])
    for start in range(0, len(crowded), rows_at_once):
        index = crowded[start : start + rows_at_once]
        part = logits if len(index) == len(logits) else logits[index]
        in_reach[index] = _sieve(part, (keys[index], positions[index], rewind_epochs[index]), stream)
    return _draw_among(logits, in_reach, (keys, positions, rewind_epochs), stream)


def _sieve(logits: Tensor, counter: tuple[Tensor, Tensor, Tensor], stream: int) -> Tensor:
    """bool [N, V]: the tokens whose logit + noise may be the largest of a row, about twenty where logits are equal.

    Those that the ceiling of their noise lifts to what some other token's noise reaches at least."""
    ceiling = noise_ceiling(*counter, logits.shape[-1], stream=stream)
    reached = (ceiling - CEILING_SPAN).add_(logits).amax(dim=-1, keepdim=True)
    return ceiling.add_(logits) >= reached


def _draw_among(logits: Tensor, candidates: Tensor, counter: tuple[Tensor, Tensor, Tensor], stream: int) -> Tensor:
    """The draws of all rows among their `candidates`, a mask [N, V]."""
    row, ids = candidates.nonzero(as_tuple=True)
    keys, positions, rewind_epochs = (part[row] for part in counter)
    noise = gumbel_noise(keys, positions, rewind_epochs, ids[:, None], stream=stream).flatten()
    scores = logits[row, ids] + noise
    best = logits.new_full((len(logits),), -math.inf).scatter_reduce_(0, row, scores, "amax")
    wins = scores == best[row]
    nobody = row.new_full((len(logits),), logits.shape[-1])
    return nobody.scatter_reduce_(0, row[wins], ids[wins], "amin")
