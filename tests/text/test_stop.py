"""Stop strings against an oracle that looks at the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isthmus.text.stop import StopMatcher

LETTERS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def oracle(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The text before (or with) the stop that is complete first, the longest of several."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


def may_become_a_stop(text: str, stops: list[str]) -> int:
    """Length of the longest end of `text` that begins a stop."""
    return max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)


@given(LETTERS, STOPS, st.booleans(), st.data())
def test_equals_oracle_for_any_split(text: str, stops: list[str], include: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    matcher, given_out, stop = StopMatcher(stops, include), "", None
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        out, stop = matcher.push(text[start:end])
        given_out += out
        if stop is not None:
            break
        assert given_out == text[: end - may_become_a_stop(text[:end], stops)]
    if stop is None:
        given_out += matcher.flush()
    assert (given_out, stop) == oracle(text, stops, include)


def test_holds_back_only_what_may_become_a_stop() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("Hello\n") == ("Hello", None)
    assert matcher.push("you") == ("\nyou", None)
    assert matcher.push("\n\nUs") == ("", None)
    assert matcher.push("age") == ("\n\nUsage", None)
    assert matcher.flush() == ""


def test_match_across_pieces_drops_the_rest() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("go S") == ("go ", None)
    assert matcher.push("TOP and more") == ("", "STOP")


def test_included_stop() -> None:
    assert StopMatcher(["."], include_stop=True).push("One. Two.") == ("One.", ".")


def test_first_complete_wins_and_ties_go_to_the_longest() -> None:
    assert StopMatcher(["bc", "abcd"]).push("abcd") == ("a", "bc")
    assert StopMatcher(["bc", "abc"]).push("abcd") == ("", "abc")


def test_flush_gives_what_was_held() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.push("do not sto") == ("do not ", None)
    assert matcher.flush() == "sto"


def test_no_stops() -> None:
    assert StopMatcher([]).push("anything") == ("anything", None)


def test_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
