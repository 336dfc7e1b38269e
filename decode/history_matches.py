"""Where a sequence repeats itself: what DRY and bans of n-grams ask after every token.

A match is an earlier position i, with the number of tokens by which the text that ends there equals the text that ends
now. One more token t leaves the matches that t follows: {i: length at i − 1, plus 1, for each i where t stood before}.
So a token costs what it has occurrences, never a scan of the context.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from ..kernels.history_rules import NO_MATCHES, Matches, find_matches
from .history_log import Log

UNDO_DEPTH = 16
"""Tokens that are undone at no cost; for more, the matches are found anew."""


class MatchIndex:
    """The matches of a growing sequence of keys: token ids, or any negative number for a token that matches nothing."""

    def __init__(self, keys: Sequence[int] | np.ndarray, window: int = 0) -> None:
        """Only matches that end within the last `window` tokens are wanted; 0 for all."""
        self._keys = Log(keys, np.int32)
        self._window = window
        self._occurrences = _group(self.keys.tolist())
        self._lengths = Log(np.zeros(len(keys)), np.int32)
        """Of the match ending at each position, 0 for none: `matches`, spread out."""
        self._former: deque[Matches] = deque(maxlen=UNDO_DEPTH)
        self.matches = NO_MATCHES
        self._set(find_matches(self.keys, window))

    @property
    def keys(self) -> np.ndarray:
        """int32 [n], a view that is valid until the next token."""
        return self._keys.array

    @property
    def distinct(self) -> Iterable[int]:
        """The keys that may match."""
        return self._occurrences.keys()

    def append(self, key: int) -> None:
        self._former.append(self.matches)
        self._set(self._extended(key))
        if key >= 0:
            self._occurrences.setdefault(key, array("i")).append(len(self._keys))
        self._keys.append(key)
        self._lengths.append(0)

    def undo(self, count: int) -> None:
        """Takes back the last `count` keys."""
        for key in self._keys.shorten(count)[::-1].tolist():
            if key >= 0:
                self._occurrences[key].pop()
                if not self._occurrences[key]:
                    del self._occurrences[key]
        if count <= len(self._former):
            former = [self._former.pop() for _ in range(count)]
            self._set(former[-1] if former else self.matches)
        else:
            self._former.clear()
            self._set(find_matches(self.keys, self._window))
        self._lengths.shorten(count)

    def _extended(self, key: int) -> Matches:
        """The matches after one more key, which is not in `_keys` yet."""
        before = self._occurrences.get(key)
        if before is None:
            return NO_MATCHES
        positions = np.array(before, np.int32)
        if self._window:
            first = len(self._keys) + 1 - self._window
            positions = positions[np.searchsorted(positions, first) :]
        lengths = np.where(positions > 0, self._lengths.array[positions - 1], 0) + np.int32(1)
        return Matches(positions, lengths)

    def _set(self, matches: Matches) -> None:
        self._lengths.array[self.matches.positions] = 0
        self._lengths.array[matches.positions] = matches.lengths
        self.matches = matches


def _group(keys: Sequence[int]) -> dict[int, "array[int]"]:
    """key -> its positions, ascending."""
    groups: dict[int, array[int]] = {}
    for position, key in enumerate(keys):
        if key >= 0:
            groups.setdefault(key, array("i")).append(position)
    return groups
