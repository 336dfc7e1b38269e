"""DRY (p-e-w, 2024): a token that would go on with a repetition loses the more, the longer that is.

For each earlier position i whose token is the last one, L is the length of the common suffix of the texts that end at
i and now, both within the last `dry_range` tokens, up to a sequence breaker. Of the L before a token, the largest
counts: where it is at least `dry_allowed_length`, the token loses multiplier · base^(L − dry_allowed_length). A breaker
is not penalised where it followed. Lengths are not capped.
"""

from collections.abc import Sequence

import numpy as np

from ..kernels.history_rules import break_keys, dry_penalty, longest_repeats
from ..text.breakers import Breakers
from ..wire.sampling import SamplingParams
from .history_log import Log
from .history_matches import MatchIndex


class DryPenalties:
    def __init__(self, params: SamplingParams, tokens: Sequence[int], breakers: Breakers | None) -> None:
        """`breakers` None: there are none."""
        self._multiplier, self._base = params.dry_multiplier, params.dry_base
        self._allowed, self._range = params.dry_allowed_length, max(0, params.dry_range)
        self._breakers = breakers
        keys, state = break_keys(tokens, breakers)
        self._states = Log([state], np.int32)
        """Of the automaton, before the first token appended and after each."""
        self._index = MatchIndex(keys, self._range)

    def append(self, token: int) -> None:
        state, is_breaker = 0, False
        if self._breakers is not None:
            state, is_breaker = self._breakers.step(int(self._states.array[-1]), token)
        self._states.append(state)
        self._index.append(~token if is_breaker else token)

    def undo(self, count: int) -> None:
        self._states.shorten(count)
        self._index.undo(count)

    def penalties(self) -> tuple[np.ndarray, np.ndarray]:
        """(token ids int64 [k], distinct; what each loses, fp32 [k])."""
        ids, lengths = longest_repeats(self._index.keys, self._index.matches, self._allowed, self._range)
        return ids.astype(np.int64), dry_penalty(lengths, self._multiplier, self._base, self._allowed)
