"""Drawing tokens: what the steps leave of the logits, and the noise of a sequence's key at an output position.

Given its logits, a token depends on its own sequence alone; neighbours, retries and the worker it runs on leave no
trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..engine.plan import NO_TOKEN, Draw, SequenceSeed
from ..engine.token_logprobs import token_logprobs
from ..kernels.gumbel_draw import draw_tokens
from ..kernels.samplers_rows import log_probability
from ..text.phrases import Phrases
from ..wire.logprobs import TokenLogprobs
from ..wire.noise import DRAW
from .sampler_state import SequenceState
from .sampling_steps import Batch, apply_steps, keep_by_mirostat, mask_logits, reshape

_BLOCK_SIZE = 2**18
"""Logits worked on at once, or one row: 1 MB, which stays in a CPU's cache, and in memory its allocator keeps."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What came of some draws, in their order."""

    token_ids: Tensor
    """int64 [N]"""
    logprobs: Sequence[TokenLogprobs | None]
    """None where the sequence does not ask."""
    states: Sequence[bytes]
    """What tokens do not determine, after these: `SequenceSeed.state` of a replay. Empty for most sequences."""


class Sampler:
    """The sampling state of every admitted sequence, and the tokens drawn with it."""

    def __init__(
        self,
        vocab_size: int,
        device: torch.device | str = "cpu",
        phrases: Phrases | None = None,
    ) -> None:
        """`phrases` finds the strings of DRY's breakers and bad_words in tokens; without it they are refused."""
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._phrases = phrases
        self._states: dict[int, SequenceState] = {}

    def admit(self, seed: SequenceSeed) -> None:
        """Begins a sequence; `output_ids` it already has count as if they had been drawn here.

        Raises ValueError where a token id that the request names is not in the vocabulary, where it allows no token,
        where `state` is not that of its sampler, and where its strings cannot be looked for in tokens."""
        assert seed.seq_id not in self._states
        self._states[seed.seq_id] = SequenceState(seed, self._vocab_size, self._device, self._phrases)

    def retire(self, seq_id: int) -> None:
        del self._states[seq_id]

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Samples:
        """One token for each row of `logits`, fp32 [N, V], which becomes part of its sequence's output; NO_TOKEN where
        a row has no finite largest logit (a model that overflowed): its sequence cannot go on."""
        assert logits.shape == (len(draws), self._vocab_size)
        assert logits.dtype == torch.float32
        rows = [self._states[draw.seq_id] for draw in draws]
        assert [row.num_output for row in rows] == [draw.position for draw in draws]
        is_sound = logits.amax(dim=-1).isfinite()
        if not bool(is_sound.all()):
            logits = logits.where(is_sound[:, None], 0)
        size = max(1, _BLOCK_SIZE // self._vocab_size)
        tokens: list[Tensor] = []
        logprobs: list[TokenLogprobs | None] = []
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            drawn, measured = _sample(logits[part], Batch.of(rows[part], draws[part], self._device), draws[part])
            tokens.append(drawn)
            logprobs += measured
        token_ids = torch.cat(tokens) if tokens else torch.empty(0, dtype=torch.int64)
        return Samples(token_ids.where(is_sound, NO_TOKEN), logprobs, [row.state for row in rows])

    def guess(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        """What `sample` would draw from another model's logits, with the same noise: a token that follows where that
        model is right. It counts as drawn until `forget`, but for what Mirostat and adaptive-p learn of it."""
        rows = [self._states[draw.seq_id] for draw in draws]
        tokens: list[int] = []
        size = max(1, _BLOCK_SIZE // self._vocab_size)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            batch = Batch.of(rows[part], draws[part], self._device)
            tokens += _choose(reshape(_judge(logits[part], batch, draws[part]), batch), batch).tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        return tokens

    def forget(self, seq_id: int, count: int) -> None:
        """The last `count` guesses of a sequence have not come."""
        self._states[seq_id].undo(count)


def _judge(logits: Tensor, batch: Batch, draws: Sequence[Draw]) -> Tensor:
    """What bans, masks, steps and Mirostat leave of the logits."""
    return keep_by_mirostat(apply_steps(mask_logits(logits, batch, _guides(draws)), batch), batch)


def _sample(logits: Tensor, batch: Batch, draws: Sequence[Draw]) -> tuple[Tensor, list[TokenLogprobs | None]]:
    """The tokens of a batch, which its rows take up, and what is to be told about them."""
    judged = _judge(logits, batch, draws)
    drawn_from = reshape(judged, batch)
    tokens = _choose(drawn_from, batch)
    _update(batch.rows, judged, tokens)
    for row, token in zip(batch.rows, tokens.tolist(), strict=True):
        row.append(token)
    return tokens, _logprobs(batch.rows, logits, drawn_from, tokens)


def _guides(draws: Sequence[Draw]) -> list[np.ndarray | None]:
    """The masks that guidance made, waited for."""
    return [None if draw.mask is None else draw.mask.result() for draw in draws]


def _choose(logits: Tensor, batch: Batch) -> Tensor:
    """The largest logit of greedy rows, a draw for the others."""
    drawn = [index for index, row in enumerate(batch.rows) if not row.is_greedy]
    if len(drawn) == len(batch.rows):
        return _draw(logits, batch)
    tokens = logits.max(dim=-1).indices
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        tokens[index] = _draw(logits[index], batch[index])
    return tokens


def _draw(logits: Tensor, batch: Batch) -> Tensor:
    return draw_tokens(logits, batch.keys, batch.positions, batch.epochs, stream=DRAW)


def _update(rows: Sequence[SequenceState], judged: Tensor, tokens: Tensor) -> None:
    """Tells the controls how likely their tokens were among what truncation left."""
    steered = [index for index, row in enumerate(rows) if row.control is not None]
    if steered:
        index = torch.tensor(steered, device=judged.device)
        for i, value in zip(steered, log_probability(judged[index], tokens[index]).tolist(), strict=True):
            control = rows[i].control
            assert control is not None
            control.update(value)


def _logprobs(
    rows: Sequence[SequenceState], raw: Tensor, processed: Tensor, tokens: Tensor
) -> list[TokenLogprobs | None]:
    """Of the model's logits, or of those that a token was drawn from, as each sequence asks."""
    found: list[TokenLogprobs | None] = [None] * len(rows)
    for mode, logits in (("raw", raw), ("processed", processed)):
        asking = [
            i for i, row in enumerate(rows) if row.params.logprobs is not None and row.params.logprobs_mode == mode
        ]
        if asking:
            index = torch.tensor(asking, device=logits.device)
            num_top = [rows[i].params.logprobs or 0 for i in asking]
            for i, one in zip(asking, token_logprobs(logits[index], tokens[index], num_top), strict=True):
                found[i] = one
    return found
