"""Drawing tokens: what the steps leave of the logits, and the noise of a sequence's key at an output position.

A draw is Gumbel-max: the token with the largest logit + noise, the lowest id where that is equal, is a sample of
softmax(logits). Given its logits, a token depends on its own sequence alone; neighbours, retries and the worker it
runs on leave no trace.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..engine.plan import Draw, SequenceSeed
from ..kernels.philox import CEILING_SPAN, GUMBEL_MAX, GUMBEL_MIN, gumbel_noise, noise_ceiling
from ..wire.noise import DRAW
from .sampling_steps import Rows, SequenceState, apply_steps

_CROWDED_SHARE = 8
"""A row with more than 1/8 of the vocabulary in reach is sieved by all its noise: cheaper than picking ids out."""
_SIEVE_SIZE = 2**18
"""Ids sieved in one go, or one row: 2 MB of words, which stay in a CPU's cache and in memory its allocator keeps."""


class Sampler:
    """The sampling state of every admitted sequence, and the tokens drawn with it."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._states: dict[int, SequenceState] = {}

    def admit(self, seed: SequenceSeed) -> None:
        """Begins a sequence; `output_ids` it already has count as if they had been drawn here.

        Raises ValueError where a token id that the request names is not in the vocabulary."""
        assert seed.seq_id not in self._states
        self._check_ids("logit_bias", seed.params.logit_bias)
        self._check_ids("stop token", seed.stop_ids)
        self._states[seed.seq_id] = SequenceState(seed, self._device)

    def retire(self, seq_id: int) -> None:
        del self._states[seq_id]

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        """One token for each row of `logits`, fp32 [N, V] -> int64 [N], which becomes part of its sequence's output.

        Raises ValueError where a row has no finite largest logit (a model that overflowed)."""
        assert logits.shape == (len(draws), self._vocab_size)
        assert logits.dtype == torch.float32
        rows = [self._states[draw.seq_id] for draw in draws]
        assert [row.num_output for row in rows] == [draw.position for draw in draws]
        tokens = _choose(apply_steps(logits, rows), rows)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.append(token)
        return tokens

    def _check_ids(self, what: str, ids: Iterable[int]) -> None:
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise ValueError(f"{what} {token} is not in the vocabulary of {self._vocab_size} tokens")


def _choose(logits: Tensor, rows: Rows) -> Tensor:
    """The largest logit of greedy rows, a draw for the others."""
    largest, tokens = logits.max(dim=-1)
    if not bool(largest.isfinite().all()):
        raise ValueError(f"no finite largest logit in rows {(~largest.isfinite()).nonzero().flatten().tolist()}")
    drawn = [index for index, row in enumerate(rows) if not row.is_greedy]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        tokens[index] = draw_tokens(
            _rows(logits, index), [rows[i].key for i in drawn], [rows[i].num_output for i in drawn]
        )
    return tokens


def draw_tokens(logits: Tensor, keys: Sequence[tuple[int, int]], positions: Sequence[int]) -> Tensor:
    """Gumbel-max over fp32 [N, V], with one key and output position a row -> int64 [N].

    A token that the largest noise does not lift to the largest logit under the smallest noise cannot win, so noise
    is computed for the others only, after a second sieve where they are many. Addition is monotonic in fp32 too: the
    result is that of all noise, to the bit.
    """
    key = torch.tensor(keys, dtype=torch.int64, device=logits.device)
    position = torch.tensor(positions, dtype=torch.int64, device=logits.device)
    in_reach = logits + GUMBEL_MAX >= logits.amax(dim=-1, keepdim=True) + GUMBEL_MIN
    crowded = (in_reach.count_nonzero(dim=-1) * _CROWDED_SHARE > logits.shape[-1]).nonzero().flatten()
    rows_at_once = max(1, _SIEVE_SIZE // logits.shape[-1])
    for start in range(0, len(crowded), rows_at_once):
        index = crowded[start : start + rows_at_once]
        in_reach[index] = _sieve(_rows(logits, index), key[index], position[index])
    return _draw_among(logits, in_reach, key, position)


def _sieve(logits: Tensor, key: Tensor, position: Tensor) -> Tensor:
    """bool [N, V]: the tokens whose logit + noise may be the largest of a row, about twenty where logits are equal.

    Those that the ceiling of their noise lifts to what some other token's noise reaches at least."""
    ceiling = noise_ceiling(key, position, torch.zeros_like(position), logits.shape[-1], stream=DRAW)
    reached = (ceiling - CEILING_SPAN).add_(logits).amax(dim=-1, keepdim=True)
    return ceiling.add_(logits) >= reached


def _draw_among(logits: Tensor, candidates: Tensor, key: Tensor, position: Tensor) -> Tensor:
    """The draws of all rows among their `candidates`, a mask [N, V]."""
    row, ids = candidates.nonzero(as_tuple=True)
    epochs = torch.zeros_like(row)
    noise = gumbel_noise(key[row], position[row], epochs, ids[:, None], stream=DRAW).flatten()
    scores = logits[row, ids] + noise
    best = torch.full_like(position, -math.inf, dtype=torch.float32).scatter_reduce_(0, row, scores, "amax")
    wins = scores == best[row]
    return torch.full_like(position, logits.shape[-1]).scatter_reduce_(0, row[wins], ids[wins], "amin")


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    """`tensor[index]`, without a copy where that is all of it."""
    return tensor if len(index) == len(tensor) else tensor[index]
