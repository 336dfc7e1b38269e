"""A growing text of tokens as a string of one character each, so that finding a copy of its end is one search of it.

The search runs in C and passes over several tokens at once: 300 tokens take it a third of a microsecond, 4,000 one,
100,000 thirty; a token that is added costs next to nothing. So texts are this until they are long and looked at often.
"""

import sys
from array import array
from collections.abc import Sequence

from .ngram_index import LONG, LONGEST, SHORT

_CODEC = "utf-32-le" if sys.byteorder == "little" else "utf-32-be"


class FlatText:
    """Token ids are less than 0x110000, as characters are."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._text = _characters(tokens)
        self._found = 0, 0, 0
        """The last copy: its end and the text's, and how many tokens were alike."""

    def __len__(self) -> int:
        return len(self._text)

    def extend(self, tokens: Sequence[int]) -> None:
        self._text += chr(tokens[0]) if len(tokens) == 1 else _characters(tokens)

    def shorten(self, num_tokens: int) -> None:
        """To the first `num_tokens`."""
        self._text = self._text[:num_tokens]
        self._found = 0, 0, 0

    def find(self) -> tuple[int, int]:
        """As NgramIndex.find."""
        text = self._text
        last = len(text) - 1
        for size in (LONG, SHORT):
            start = text.rfind(text[-size:], 0, last) if last >= size else -1
            if start >= 0:
                position = start + size
                num_alike = self._alike(position, size)
                self._found = position, len(text), num_alike
                return position, num_alike
        return 0, 0

    def after(self, position: int, count: int) -> tuple[int, ...]:
        """As NgramIndex.after."""
        found = self._text[position : position + count]
        while len(found) < count:
            found += self._text[position : position + count - len(found)]
        return tuple(map(ord, found))

    def _alike(self, position: int, size: int) -> int:
        """Of a copy of the last `size` tokens, or more, that ends before `position`. Where the text has gone on as the
        last copy did, only what is new is compared."""
        text = self._text
        last, end, num_alike = self._found
        num_new = len(text) - end
        if num_alike and position - last == num_new and (num_new <= size or text[last:position] == text[end:]):
            return min(num_alike + num_new, LONGEST)
        count, one, other = size, position - 1, len(text) - 1
        while count < LONGEST and count <= one and text[one - count] == text[other - count]:
            count += 1
        return count


def _characters(tokens: Sequence[int]) -> str:
    return array("I", tokens).tobytes().decode(_CODEC, "surrogatepass")
