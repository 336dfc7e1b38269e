"""Guesses that a sequence goes on as it did after the longest earlier copy of its end ("prompt lookup", Saxena 2023).

Prompt and output are one text. Where several copies are as long, the last one counts; one that reaches into itself goes
on in circles, as loops do.
"""

from collections.abc import Sequence

import numpy as np

from .history_matches import MatchIndex

MIN_MATCH = 2
"""Tokens of a copy: after a single one almost anything may come."""


class NgramProposer:
    """Of one sequence. A token costs what it has occurrences, and nothing before the first guess is asked for."""

    def __init__(self, min_match: int = MIN_MATCH) -> None:
        self._min_match = min_match
        self._index: MatchIndex | None = None

    def propose(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """At most `count` tokens that may follow `tokens`, which begin with those it was given before."""
        index = self._index = self._index or MatchIndex(tokens)
        for token in tokens[len(index.keys) :]:
            index.append(token)
        matches, keys = index.matches, index.keys
        if not len(matches.positions):
            return ()
        longest = len(matches.lengths) - 1 - int(np.argmax(matches.lengths[::-1]))
        if matches.lengths[longest] < self._min_match:
            return ()
        follows = int(matches.positions[longest]) + 1
        return tuple(keys[follows + np.arange(count) % (len(keys) - follows)].tolist())

    def forget(self, num_tokens: int) -> None:
        """The tokens after the first `num_tokens` were taken back."""
        if self._index is not None and len(self._index.keys) > num_tokens:
            self._index.undo(len(self._index.keys) - num_tokens)
