"""What samplers need to know of each row of logits: its largest, sums over it, how its probabilities are normalised.

Sums are fp64 and taken in an order that depends on the row's length alone: torch splits a reduction to one number over
threads and one to many numbers not, so that a plain sum of a row would depend on how many rows there are.
"""

import math

import torch
from torch import Tensor

FLOOR = -100.0
"""Of logits below the largest. e⁻¹⁰⁰ adds nothing to a sum that holds a 1, and exp(−inf) costs a CPU eight times as
much as exp(−100)."""
_BLOCK = 256


def below_largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [N, V] -> the largest of each row, fp32 [N, 1], and how far below it each logit is: fp64 [N, V] in
    [FLOOR, 0], rounded to fp32 first."""
    largest = logits.amax(dim=-1, keepdim=True)
    return largest, (logits - largest).clamp_(min=FLOOR).double()


def row_sums(values: Tensor) -> Tensor:
    """fp64 [N, V] -> [N, 1]: blocks of 256, then their sums, so that no reduction is long enough to be split."""
    size = values.shape[-1]
    whole = size // _BLOCK * _BLOCK
    blocks = values[:, :whole].unflatten(-1, (whole // _BLOCK, _BLOCK)).sum(dim=-1)
    return blocks.sum(dim=-1, keepdim=True) + values[:, whole:].sum(dim=-1, keepdim=True)


def partition(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(largest fp32 [N, 1], ln Σ e^(logit − largest) fp64 [N, 1]): ln p = (logit − largest) − the second."""
    largest, below = below_largest(logits)
    return largest, row_sums(below.exp_()).log_()


def entropy(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(largest, ln Σ e^(logit − largest), entropy in nats) of the rows' softmax; fp32, fp64, fp64, each [N, 1]."""
    largest, below = below_largest(logits)
    weights = below.exp()
    total = row_sums(weights)
    log_total = total.log()
    return largest, log_total, log_total - row_sums(weights.mul_(below)) / total


def keep_at_least(logits: Tensor, largest: Tensor, offset: Tensor) -> Tensor:
    """Removes what is more than −`offset` (fp64 [N, 1]) below the largest logit, which always stays."""
    return logits.masked_fill(logits < largest + offset.clamp(max=0).float(), -math.inf)


def keep_first(logits: Tensor, num_kept: Tensor, last: Tensor) -> Tensor:
    """The first `num_kept` int64 [N, 1] of each row in order of (value descending, id ascending), the least of which
    has the value `last` [N, 1]."""
    at_least = logits >= last
    excess = at_least.count_nonzero(dim=-1)[:, None] > num_kept
    if bool(excess.any()):
        tied = logits == last
        room = num_kept - (logits > last).count_nonzero(dim=-1)[:, None]
        at_least &= ~tied | (tied.cumsum(dim=-1) <= room)
    return logits.masked_fill(~at_least, -math.inf)


def descending(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(values, ids) of each row in order of (value descending, id ascending)."""
    values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    return values, ids


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """fp64 [N]: ln of the softmax of `logits` [N, V] at `tokens` int64 [N]."""
    largest, log_total = partition(logits)
    chosen = logits.gather(1, tokens[:, None])
    return ((chosen - largest).double() - log_total).squeeze(1)
