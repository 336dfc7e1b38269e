"""Tokens that may not come next because of the ones before: n-grams that would come twice, words that never may."""

from collections.abc import Sequence

import numpy as np

from .history_matches import MatchIndex


class NgramBans:
    """Each token that followed an earlier copy of the last `size` − 1 tokens, of prompt and output."""

    def __init__(self, size: int, tokens: Sequence[int]) -> None:
        assert size > 0
        self._size = size
        self._index = MatchIndex(tokens)

    def append(self, token: int) -> None:
        self._index.append(token)

    def undo(self, count: int) -> None:
        self._index.undo(count)

    def banned(self) -> np.ndarray:
        """int64 [k], distinct."""
        if self._size == 1:
            return np.array([*self._index.distinct], np.int64)
        matches = self._index.matches
        ends = matches.positions[matches.lengths >= self._size - 1]
        return np.unique(self._index.keys[ends + 1]).astype(np.int64)


class WordBans:
    """The last token of each word, while the output ends with the others."""

    def __init__(self, words: Sequence[tuple[int, ...]], output_ids: Sequence[int]) -> None:
        """`words`: their tokens, none empty."""
        self._output = list(output_ids)
        self._single = {word[0] for word in words if len(word) == 1}
        self._by_previous: dict[int, list[tuple[int, ...]]] = {}
        for word in words:
            if len(word) > 1:
                self._by_previous.setdefault(word[-2], []).append(word)

    def append(self, token: int) -> None:
        self._output.append(token)

    def undo(self, count: int) -> None:
        del self._output[len(self._output) - count :]

    def banned(self) -> np.ndarray:
        """int64 [k], distinct."""
        begun = self._by_previous.get(self._output[-1], ()) if self._output else ()
        return np.array([*self._single | {word[-1] for word in begun if self._ends_with(word[:-1])}], np.int64)

    def _ends_with(self, tokens: tuple[int, ...]) -> bool:
        return tuple(self._output[-len(tokens) :]) == tokens
