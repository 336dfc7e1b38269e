"""Where the end of a growing text stood in it before.

Two sizes of n-grams are kept, each with the last position at which it ended: the longer one finds the better copy, the
shorter one more. A token costs two insertions and a look at most four lookups, however long the text is. The n-grams of
what it begins with lie in sorted arrays of 12 bytes each, those that come later in dictionaries.
"""

from array import array
from collections.abc import Sequence

import numpy as np

SHORT, LONG = 3, 6
"""Tokens of an n-gram; LONG is twice SHORT."""
LONGEST = 32
"""Tokens that are compared."""
_BITS = 21
"""Of a token id in a key."""
_MIX, _MASK = 0x9E37_79B9_7F4A_7C15, (1 << SHORT * _BITS) - 1


class NgramIndex:
    def __init__(self, tokens: Sequence[int]) -> None:
        self._begin(tokens)

    def _begin(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._keys = _keys_of(self._tokens[-LONG:])
        """Of the last n-grams, of tokens up to each of the last ones."""
        self._past = _Past(self._tokens)
        self._short: dict[int, int] = {}
        self._long: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """The n-grams that end before each of these are known from now on to have stood before what follows."""
        keys, end = self._keys, len(self._tokens) - 1
        for token in tokens:
            key = keys[-1]
            if end >= SHORT - 1:
                self._short[key] = end
            if end >= LONG - 1:
                self._long[(keys[-1 - SHORT] * _MIX & _MASK) ^ key] = end
            end += 1
            keys.append((key << _BITS) & _MASK | token)
        self._tokens += tokens
        del keys[:-LONG]

    def shorten(self, num_tokens: int) -> None:
        """To the first `num_tokens`, all of which are noted anew: this is rare."""
        self._begin(self._tokens[:num_tokens])

    def find(self) -> tuple[int, int]:
        """(position after the copy of the text's end, how many tokens are alike, at most LONGEST); (0, 0) for none."""
        end, key = len(self._tokens) - 1, self._keys[-1]
        if end < SHORT - 1:
            return 0, 0
        num_alike = 0
        if end >= LONG - 1:
            long_key = (self._keys[-1 - SHORT] * _MIX & _MASK) ^ key
            found = self._long.get(long_key)
            found = self._past.last_long(long_key) if found is None else found
            num_alike = 0 if found is None else self._alike(found, end)
        if num_alike < SHORT:
            found = self._short.get(key)
            found = self._past.last_short(key) if found is None else found
            num_alike = 0 if found is None else self._alike(found, end)
        return (found + 1, num_alike) if found is not None and num_alike >= SHORT else (0, 0)

    def after(self, position: int, count: int) -> tuple[int, ...]:
        """What followed; a copy that reaches the end of the text goes on in circles, as loops do."""
        size = len(self._tokens) - position
        return tuple(self._tokens[position + i % size] for i in range(count))

    def _alike(self, one: int, other: int) -> int:
        """Tokens before and at these positions that are the same."""
        tokens, count = self._tokens, 0
        while count < LONGEST and count <= one and tokens[one - count] == tokens[other - count]:
            count += 1
        return count


class _Past:
    """The n-grams of a text that end before its last token."""

    def __init__(self, tokens: Sequence[int]) -> None:
        ids = np.frombuffer(array("Q", tokens), np.uint64)
        self._short: dict[int, int] | _Sorted = {}
        self._long: dict[int, int] | _Sorted = {}
        if len(ids) <= SHORT:
            return
        bits = np.uint64(_BITS)
        with np.errstate(over="ignore"):
            keys = ((ids[:-2] << bits | ids[1:-1]) << bits | ids[2:])[:-1]
            longer = (keys[:-SHORT] * np.uint64(_MIX) & np.uint64(_MASK)) ^ keys[SHORT:]
        self._short, self._long = _Sorted(keys, SHORT - 1), _Sorted(longer, LONG - 1)

    def last_short(self, key: int) -> int | None:
        return self._short.get(key)

    def last_long(self, key: int) -> int | None:
        return self._long.get(key)


class _Sorted:
    """As a dictionary from keys to the last position of each, the first being at `first`."""

    def __init__(self, keys: np.ndarray, first: int) -> None:
        order = np.argsort(keys, kind="stable").astype(np.int32)
        self._keys, self._positions = keys[order], order + np.int32(first)

    def get(self, key: int) -> int | None:
        index = int(np.searchsorted(self._keys, np.uint64(key), side="right")) - 1
        return int(self._positions[index]) if index >= 0 and int(self._keys[index]) == key else None


def _keys_of(tokens: Sequence[int]) -> list[int]:
    """Up to each token: the last SHORT tokens as one number."""
    keys, key = [], 0
    for token in tokens:
        key = (key << _BITS) & _MASK | token
        keys.append(key)
    return keys
