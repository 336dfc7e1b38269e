"""Guesses that a sequence goes on as it did after an earlier copy of its end ("prompt lookup", Saxena 2023).

Prompt and output are one text. How sure a guess is follows from how many tokens are alike.
"""

from bisect import bisect_right
from collections.abc import Sequence

from .flat_text import FlatText
from .ngram_index import NgramIndex

CLASSES = 4, 6, 10, 16, 32
"""Tokens alike from which on a guess is of the next class."""
INDEXED_TOKENS, INDEXED_LOOKS = 4096, 128
"""Texts as long as this that were looked at so often are put in an index, which takes as long as some hundred looks."""


class NgramProposer:
    """Of one sequence. Nothing is done before the first look."""

    def __init__(self) -> None:
        self._text: FlatText | NgramIndex | None = None
        self._found = 0, 0
        self._num_looked = -1
        self._num_looks = 0

    def look(self, tokens: Sequence[int]) -> int | None:
        """Class of the guess of what follows `tokens`, which begin with those it was given before: 0 … len(CLASSES),
        the higher the surer; None if it has none."""
        if len(tokens) != self._num_looked:
            text = self._text = self._text or FlatText(tokens)
            text.extend(tokens[len(text) :])
            self._found, self._num_looked = text.find(), len(tokens)
            self._num_looks += 1
            if self._num_looks >= INDEXED_LOOKS and len(tokens) >= INDEXED_TOKENS and isinstance(text, FlatText):
                self._text = NgramIndex(tokens)
        num_alike = self._found[1]
        return bisect_right(CLASSES, num_alike) if num_alike else None

    def propose(self, count: int) -> tuple[int, ...]:
        """At most `count` tokens that may follow those it looked at last."""
        position, num_alike = self._found
        return self._text.after(position, count) if num_alike and self._text is not None else ()

    def forget(self, num_tokens: int) -> None:
        """The tokens after the first `num_tokens` were taken back."""
        if self._text is not None and len(self._text) > num_tokens:
            self._text.shorten(num_tokens)
        self._found, self._num_looked = (0, 0), -1
