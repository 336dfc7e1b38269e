"""From logits to what a client is told about a token: how likely it was, and what else was."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..kernels.top_logprobs import TopLogprobs, top_logprobs
from ..wire.logprobs import TokenLogprobs

ROWS_AT_ONCE = 128
"""Logits of a prompt are made and measured in pieces of so many rows: 64 MB at a vocabulary of 128k."""


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """fp32 logits [N, V], a token and a number of alternatives for each row -> N of them.

    A row's result depends on nothing but the row."""
    if not len(logits):
        return []
    most = min(max(num_top), logits.shape[1])
    return read_logprobs(top_logprobs(logits.contiguous(), token_ids, most), num_top)


def read_logprobs(measured: TopLogprobs, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """`measured`, as plain numbers; of row i at most num_top[i] alternatives. Waits for the device."""
    columns = (measured.logprobs, measured.ranks, measured.top_ids, measured.top_logprobs)
    return [
        TokenLogprobs(chosen, possible(ids[:n], logprobs[:n]), rank)
        for chosen, rank, ids, logprobs, n in zip(*(column.tolist() for column in columns), num_top, strict=True)
    ]


def possible(ids: Sequence[int], logprobs: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """(id, logprob) of those that have a chance."""
    return tuple(pair for pair in zip(ids, logprobs, strict=True) if pair[1] > -torch.inf)


def prompt_logprobs(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, num_top: int
) -> Iterator[TopLogprobs]:
    """Of the tokens `targets` [N] that follow the positions of `hidden` [N, hidden_size], piece by piece: so much
    memory is never needed at once as the logits of a long chunk take. `head` makes fp32 logits [n, V] of them."""
    for piece, known in zip(hidden.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True):
        logits = head(piece)
        yield top_logprobs(logits, known, min(num_top, logits.shape[1]))
