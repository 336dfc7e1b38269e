"""Where the end of a growing text stood in it before.

Two sizes of n-grams are kept, each with the last position at which it ended: the longer one finds the better copy, the
shorter one more. A token costs two insertions and a look at most four lookups, however long the text is. The n-grams of
a long beginning, a prompt, lie in sorted arrays of 12 bytes each, those that come later in dictionaries.
"""

from collections.abc import Sequence

import numpy as np

SHORT, LONG = 3, 6
"""Tokens of an n-gram; LONG is twice SHORT."""
LONGEST = 16
"""Tokens that are compared."""
SORTED_FROM = 2048
"""Tokens of a beginning that lies in arrays."""
_BITS = 21
"""Of a token id in a key."""
_MIX, _MASK = 0x9E37_79B9_7F4A_7C15, (1 << 64) - 1


class NgramIndex:
    def __init__(self, tokens: Sequence[int]) -> None:
        self._begin(tokens)

    def _begin(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._num_begun = len(self._tokens)
        self._past = _Past(self._tokens)
        self._short: dict[int, int] = {}
        self._long: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def append(self, token: int) -> None:
        """The n-grams that end here are known from now on to have stood before what follows."""
        self._note(len(self._tokens) - 1)
        self._tokens.append(token)

    def shorten(self, num_tokens: int) -> None:
        """To the first `num_tokens`, all of which are noted anew: this is rare."""
        self._begin(self._tokens[:num_tokens])

    def find(self) -> tuple[int, int]:
        """(position after the copy of the text's end, how many tokens are alike, at most LONGEST); (0, 0) for none."""
        end = len(self._tokens) - 1
        if end < SHORT - 1:
            return 0, 0
        key = self._key(end)
        found = None
        if end >= LONG - 1:
            long_key = _joined(self._key(end - SHORT), key)
            found = self._long.get(long_key)
            if found is None:
                found = self._past.last_long(long_key)
        if found is None or not self._alike(found, end):
            found = self._short.get(key)
            if found is None:
                found = self._past.last_short(key)
        if found is None:
            return 0, 0
        num_alike = self._alike(found, end)
        return (found + 1, num_alike) if num_alike >= SHORT else (0, 0)

    def after(self, position: int, count: int) -> tuple[int, ...]:
        """What followed; a copy that reaches the end of the text goes on in circles, as loops do."""
        size = len(self._tokens) - position
        return tuple(self._tokens[position + i % size] for i in range(count))

    def _note(self, end: int) -> None:
        if end >= max(SHORT - 1, self._num_begun - 1):
            self._short[self._key(end)] = end
            if end >= LONG - 1:
                self._long[_joined(self._key(end - SHORT), self._key(end))] = end

    def _key(self, end: int) -> int:
        a, b, c = self._tokens[end - 2 : end + 1]
        return ((a << _BITS | b) << _BITS | c) & _MASK

    def _alike(self, one: int, other: int) -> int:
        """Tokens before and at these positions that are the same."""
        tokens, count = self._tokens, 0
        while count < LONGEST and count <= one and tokens[one - count] == tokens[other - count]:
            count += 1
        return count


class _Past:
    """The n-grams of a text that end before its last token."""

    def __init__(self, tokens: Sequence[int]) -> None:
        ids = np.asarray(tokens, np.uint64)
        self._short: dict[int, int] | _Sorted = {}
        self._long: dict[int, int] | _Sorted = {}
        if len(ids) <= SHORT:
            return
        bits = np.uint64(_BITS)
        with np.errstate(over="ignore"):
            keys = ((ids[:-2] << bits | ids[1:-1]) << bits | ids[2:])[:-1]
            longer = keys[:-SHORT] * np.uint64(_MIX) ^ keys[SHORT:]
        kind = _Sorted if len(ids) >= SORTED_FROM else _last_of
        self._short, self._long = kind(keys, SHORT - 1), kind(longer, LONG - 1)

    def last_short(self, key: int) -> int | None:
        return self._short.get(key)

    def last_long(self, key: int) -> int | None:
        return self._long.get(key)


def _last_of(keys: np.ndarray, first: int) -> dict[int, int]:
    return dict(zip(keys.tolist(), range(first, first + len(keys)), strict=True))


class _Sorted:
    """As a dictionary from keys to the last position of each, the first being at `first`."""

    def __init__(self, keys: np.ndarray, first: int) -> None:
        order = np.argsort(keys, kind="stable").astype(np.int32)
        self._keys, self._positions = keys[order], order + np.int32(first)

    def get(self, key: int) -> int | None:
        index = int(np.searchsorted(self._keys, np.uint64(key), side="right")) - 1
        return int(self._positions[index]) if index >= 0 and int(self._keys[index]) == key else None


def _joined(first: int, second: int) -> int:
    return (first * _MIX & _MASK) ^ second
