"""DRY takes tokens back for what they are, not for what the text is: counted, not timed."""

import random
import sys
from typing import Any

import pytest
from isthmus.decode import history_matches
from isthmus.decode.history_dry import DryPenalties
from isthmus.decode.history_matches import UNDO_DEPTH, MatchIndex
from isthmus.kernels.history_rules import Matches
from isthmus.wire.sampling import SamplingParams

PARAMS = SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=())
NUM_OCCURRENCES = 5
"""Of each token, before those that are taken back."""


class Counted:
    """Calls of any function, and matches that are written, while it is entered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_calls = self.num_matches = 0
        monkeypatch.setattr(history_matches, "find_matches", self._find)
        monkeypatch.setattr(MatchIndex, "_set", self._counting(MatchIndex._set))

    def _find(self, *args: Any) -> Matches:
        raise AssertionError("matches were looked for in the whole text")

    def _counting(self, set_matches: Any) -> Any:
        def counting(index: MatchIndex, matches: Matches) -> None:
            self.num_matches += len(index.matches.positions) + len(matches.positions)
            set_matches(index, matches)

        return counting

    def __enter__(self) -> "Counted":
        self.num_calls = self.num_matches = 0
        self._before = sys.getprofile()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _count(self, frame: Any, event: str, arg: Any) -> None:
        self.num_calls += event in ("call", "c_call")


def work(num_tokens: int, count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """(calls, matches written) that it takes to undo `count` tokens after so many."""
    tokens = list(range(num_tokens // NUM_OCCURRENCES)) * NUM_OCCURRENCES
    random.Random(1).shuffle(tokens)
    penalties = DryPenalties(PARAMS, tokens, None)
    for token in range(UNDO_DEPTH):
        penalties.append(token)
    with monkeypatch.context() as patch, Counted(patch) as counted:
        penalties.undo(count)
    return counted.num_calls, counted.num_matches


@pytest.mark.parametrize("count", [1, 4, UNDO_DEPTH])
def test_the_length_of_the_text_does_not_count(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert work(1_000, count, monkeypatch) == work(100_000, count, monkeypatch)


def test_tokens_count_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls more for each; the matches of the last and of the one that is then the last are written, only."""
    costs = [work(10_000, count, monkeypatch) for count in (1, 2, 4, 8, 16)]
    calls = [num_calls for num_calls, _ in costs]
    each = calls[1] - calls[0]
    assert 0 < each < 20
    assert calls == [calls[0] + each * (count - 1) for count in (1, 2, 4, 8, 16)]
    assert all(num_matches <= 2 * (NUM_OCCURRENCES + 1) for _, num_matches in costs)
