"""Which tokens a sequence has seen: how often in its output, how long ago, and what repetition costs each now."""

from collections.abc import Sequence

import numpy as np

from ..kernels.history_rules import older_repetition, repetition_bounds
from ..wire.sampling import SamplingParams
from .history_log import Log


class SeenTokens:
    """Tokens are numbered in the order of their first appearance.

    A token counts for the repetition penalty r while its last position is within the last `repetition_penalty_range`
    tokens (of prompt and output; 0 for all); within the older half of these with 1 + (r − 1) · slope. Presence and
    frequency penalties know no range. Source: KoboldCpp's rep_pen_range and rep_pen_slope."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        self._penalty, self._range = params.repetition_penalty, params.repetition_penalty_range
        self._older = older_repetition(params.repetition_penalty, params.repetition_penalty_slope)
        is_counted = params.repetition_penalty != 1
        tokens = [*prompt_ids, *output_ids]
        self._numbers = {token: i for i, token in enumerate(dict.fromkeys(tokens if is_counted else output_ids))}
        self._ids = Log([*self._numbers], np.int64)
        self._counts = Log(np.zeros(len(self._numbers)), np.float32)
        np.add.at(self._counts.array, np.array([self._numbers[token] for token in output_ids], np.int64), 1)
        self._last = Log(np.zeros(len(self._numbers)), np.int64)
        last = {token: position for position, token in enumerate(tokens) if token in self._numbers}
        self._last.array[:] = [last[token] for token in self._numbers]
        self._num_tokens = len(tokens)
        self._former: list[tuple[int, int | None]] = []
        """Of each token appended: its number, and where it was seen last before; None for nowhere."""

    @property
    def ids(self) -> np.ndarray:
        """int64 [k], a view that is valid until the next token."""
        return self._ids.array

    @property
    def counts(self) -> np.ndarray:
        """In the output, fp32 [k]; such a view."""
        return self._counts.array

    def repetition(self) -> np.ndarray:
        """What each token's logit is divided or multiplied by, fp32 [k]."""
        first, middle = repetition_bounds(self._num_tokens, self._range)
        last = self._last.array
        inside = np.where(last < middle, self._older, self._penalty)
        return np.where(last < first, 1.0, inside).astype(np.float32)

    def append(self, token: int) -> None:
        number = self._numbers.setdefault(token, len(self._numbers))
        if number == len(self._ids):
            for log, value in ((self._ids, token), (self._counts, 0), (self._last, 0)):
                log.append(value)
            self._former.append((number, None))
        else:
            self._former.append((number, int(self._last.array[number])))
        self._counts.array[number] += 1
        self._last.array[number] = self._num_tokens
        self._num_tokens += 1

    def undo(self, count: int) -> None:
        """Takes back the last `count` tokens appended."""
        for _ in range(count):
            number, last = self._former.pop()
            self._num_tokens -= 1
            self._counts.array[number] -= 1
            if last is None:
                del self._numbers[int(self._ids.array[number])]
                for log in (self._ids, self._counts, self._last):
                    log.shorten(1)
            else:
                self._last.array[number] = last
