"""What the tokens so far say about the next one: penalties, DRY, repeated n-grams, bad words.

All of it follows from the tokens and is kept up with them one at a time, so a step costs what there is to say, and a
replay begins with the tokens. Nothing is built for what a request does not ask for.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..text.phrases import Phrases
from ..wire.sampling import SamplingParams
from ..wire.sampling_order import active_steps
from .history_bans import NgramBans, WordBans
from .history_dry import DryPenalties
from .history_seen import SeenTokens

_NOTHING = np.zeros(0, np.int64), np.zeros(0, np.float32)


class History:
    """Of one sequence. Tensors are on the CPU; those of `penalties` are views, valid until the next token."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], output_ids: Sequence[int], phrases: Phrases | None
    ) -> None:
        """`phrases` is None where there is no tokenizer. Raises ValueError, naming the field, for strings that then
        cannot be looked for, and for those that cannot be written in the model's tokens."""
        tokens, steps = [*prompt_ids, *output_ids], active_steps(params)
        self._dry = self._ngrams = self._words = self._seen = None
        if "dry" in steps:
            strings = params.dry_sequence_breakers
            breakers = _known(phrases, "dry_sequence_breakers").breakers(strings) if strings else None
            self._dry = DryPenalties(params, tokens, breakers)
        if "no_repeat_ngram" in steps:
            self._ngrams = NgramBans(params.no_repeat_ngram_size, tokens)
        if params.bad_words:
            self._words = WordBans(_known(phrases, "bad_words").bad_words(params.bad_words), output_ids)
        if "penalties" in steps:
            self._seen = SeenTokens(params, prompt_ids, output_ids)
        self._parts = [part for part in (self._dry, self._ngrams, self._words, self._seen) if part is not None]
        self._num_appended = 0

    def append(self, token: int) -> None:
        """`token` is now the last of the output."""
        for part in self._parts:
            part.append(token)
        self._num_appended += 1

    def undo(self, count: int) -> None:
        """The last `count` tokens appended have not come."""
        assert 0 <= count <= self._num_appended
        self._num_appended -= count
        for part in self._parts:
            part.undo(count)

    def dry(self) -> tuple[Tensor, Tensor]:
        """Tokens that would go on with a repetition, int64 [k], distinct, and what each loses, fp32 [k]."""
        ids, penalties = _NOTHING if self._dry is None else self._dry.penalties()
        return torch.from_numpy(ids), torch.from_numpy(penalties)

    def banned(self) -> Tensor:
        """Tokens that would repeat an n-gram, int64 [k], distinct."""
        return torch.from_numpy(_NOTHING[0] if self._ngrams is None else self._ngrams.banned())

    def bad_words(self) -> Tensor:
        """Tokens that would complete a bad word, int64 [k], distinct: banned before anything else is done."""
        return torch.from_numpy(_NOTHING[0] if self._words is None else self._words.banned())

    def penalties(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens seen, int64 [k], distinct; how often each stands in the output, fp32 [k]; its repetition penalty now,
        fp32 [k]. Without a repetition penalty, tokens of the prompt alone are left out."""
        nothing, seen = (*_NOTHING, _NOTHING[1]), self._seen
        ids, counts, repetition = nothing if seen is None else (seen.ids, seen.counts, seen.repetition())
        return torch.from_numpy(ids), torch.from_numpy(counts), torch.from_numpy(repetition)


def _known(phrases: Phrases | None, field: str) -> Phrases:
    if phrases is None:
        raise ValueError(f"{field} needs the model's tokenizer, which this worker does not have")
    return phrases
