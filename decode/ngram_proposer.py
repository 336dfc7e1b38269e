"""Guesses that a sequence goes on as it did after an earlier copy of its end ("prompt lookup", Saxena 2023).

Prompt and output are one text. How sure a guess is follows from how many tokens are alike.
"""

from bisect import bisect_right
from collections.abc import Sequence

from .ngram_index import NgramIndex

CLASSES = 4, 6, 10, 16, 32
"""Tokens alike from which on a guess is of the next class."""


class NgramProposer:
    """Of one sequence. Nothing is done before the first look."""

    def __init__(self) -> None:
        self._index: NgramIndex | None = None
        self._found = 0, 0
        self._num_looked = -1

    def look(self, tokens: Sequence[int]) -> int | None:
        """Class of the guess of what follows `tokens`, which begin with those it was given before: 0 … len(CLASSES),
        the higher the surer; None if it has none."""
        _, num_alike = self._find(tokens)
        return bisect_right(CLASSES, num_alike) if num_alike else None

    def propose(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """At most `count` tokens that may follow."""
        position, num_alike = self._find(tokens)
        return self._index.after(position, count) if num_alike and self._index is not None else ()

    def forget(self, num_tokens: int) -> None:
        """The tokens after the first `num_tokens` were taken back."""
        if self._index is not None and len(self._index) > num_tokens:
            self._index.shorten(num_tokens)
        self._num_looked = -1

    def _find(self, tokens: Sequence[int]) -> tuple[int, int]:
        """As NgramIndex.find."""
        if len(tokens) != self._num_looked:
            index = self._index = self._index or NgramIndex(tokens)
            index.extend(tokens[len(index) :])
            self._found, self._num_looked = index.find(), len(tokens)
        return self._found
