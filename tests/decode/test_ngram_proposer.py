"""What n-grams guess: what followed the same tokens before, found without reading the text again."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.decode.flat_text import FlatText
from isthmus.decode.ngram_index import LONG, LONGEST, SHORT, NgramIndex
from isthmus.decode.ngram_proposer import CLASSES, INDEXED_LOOKS, INDEXED_TOKENS, NgramProposer

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60) | st.lists(st.integers(0, 30), min_size=1, max_size=30)


def copy_of_the_end(tokens: Sequence[int]) -> tuple[int, int]:
    """By definition: (position after the last earlier copy of the last LONG tokens, or else SHORT, how many tokens
    before it are alike, at most LONGEST); (0, 0) for none."""
    for size in (LONG, SHORT):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                return end, alike(tokens, end)
    return 0, 0


def alike(tokens: Sequence[int], end: int) -> int:
    pairs = zip(reversed(tokens[:end]), reversed(tokens), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b or i == LONGEST), min(end, LONGEST))


def guesses_of(tokens: Sequence[int], count: int) -> tuple[int, ...]:
    start, num_alike = copy_of_the_end(tokens)
    loop = tokens[start:]
    return tuple(loop[i % len(loop)] for i in range(count)) if num_alike else ()


def proposed(proposer: NgramProposer, tokens: Sequence[int], count: int) -> tuple[int, ...]:
    proposer.look(tokens)
    return proposer.propose(count)


KINDS = pytest.mark.parametrize("kind", [FlatText, NgramIndex])


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, begin=st.integers(1, 40), count=st.integers(1, 8))
@KINDS
def test_guesses_are_those_of_the_definition(
    kind: type[FlatText] | type[NgramIndex], text: list[int], begin: int, count: int
) -> None:
    """Token by token, after any beginning, whatever the text lies in."""
    begin = min(begin, len(text))
    one = kind(text[:begin])
    for size in range(begin, len(text) + 1):
        one.extend(text[len(one) : size])
        position, num_alike = one.find()
        assert (position, num_alike) == copy_of_the_end(text[:size])
        assert not num_alike or one.after(position, count) == guesses_of(text[:size], count)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, steps=st.lists(st.lists(st.integers(0, 3), max_size=7) | st.integers(1, 20), max_size=12))
def test_incremental_is_from_scratch(text: list[int], steps: list[list[int] | int]) -> None:
    """Tokens come, many at once, and some are taken back and come differently."""
    proposer, tokens = NgramProposer(), list(text)
    for step in steps:
        proposer.look(tokens)
        if isinstance(step, int):
            del tokens[max(1, len(tokens) - step) :]
            proposer.forget(len(tokens))
        else:
            tokens += step
        fresh = NgramProposer()
        assert proposer.look(tokens) == fresh.look(tokens)
        assert proposer.propose(6) == fresh.propose(6)


def test_a_long_text_that_is_looked_at_often_is_put_in_an_index() -> None:
    """Which finds the same."""
    rng = random.Random(3)
    text = [rng.randrange(12) for _ in range(INDEXED_TOKENS + 2 * INDEXED_LOOKS)]
    long, short = NgramProposer(), NgramProposer()
    for size in range(INDEXED_TOKENS, len(text) + 1):
        assert proposed(long, text[:size], 5) == guesses_of(text[:size], 5)
    for size in range(1, 2 * INDEXED_LOOKS):
        short.look(text[:size])
    assert (type(long._text), type(short._text)) == (NgramIndex, FlatText)


def test_a_longer_copy_is_better_than_a_later_one() -> None:
    copied = [1, 2, 3, 4, 5, 6]
    assert proposed(NgramProposer(), [*copied, 7, 9, 4, 5, 6, 8, *copied], 1) == (7,)


def test_of_copies_that_are_as_long_the_last_one_counts() -> None:
    assert proposed(NgramProposer(), [1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 2) == (8, 1)


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_loops_go_on(period: int) -> None:
    loop = list(range(10, 10 + period))
    endless = loop * 40
    assert proposed(NgramProposer(), endless[:17], 12) == tuple(endless[17:29])


@pytest.mark.parametrize("text", [[1], [1, 1], [1, 1, 1], [1, 2, 1, 2], list(range(50))])
def test_where_nothing_comes_again_nothing_is_guessed(text: list[int]) -> None:
    proposer = NgramProposer()
    assert proposer.look(text) is None
    assert proposer.propose(4) == ()


def test_the_more_is_alike_the_higher_the_class() -> None:
    found = []
    for num_alike in range(SHORT, LONGEST + 1):
        text = [*range(100, 100 + num_alike), 7, *range(100, 100 + num_alike)]
        of = NgramProposer().look(text)
        assert of is not None
        found.append(of)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, len(CLASSES))


@pytest.mark.parametrize("top", [2**16 - 1, 0xDFFF, 0xD800 + 2, 0x110000 - 1])
@KINDS
def test_large_token_ids_are_told_apart(kind: type[FlatText] | type[NgramIndex], top: int) -> None:
    one = kind([top, top - 1, top - 2, 5, top, top - 1, 0, top, top - 1, top - 2])
    assert one.after(one.find()[0], 1) == (5,)
    assert one.after(0, 2) == (top, top - 1)
    assert kind([0, 0, 1, 9, 0, 1, 0, 8, 1, 0, 0]).find() == (0, 0)


class CountingList(list[int]):
    """Counts what is read of it."""

    num_read = 0

    def __getitem__(self, index):
        got = super().__getitem__(index)
        self.num_read += len(got) if isinstance(index, slice) else 1
        return got


@pytest.mark.parametrize("length", [100_000])
def test_a_token_costs_the_same_at_any_length(length: int) -> None:
    """No part of a text of 100,000 tokens is read again once it is in an index: two insertions a token, and a few
    comparisons a look."""
    rng = random.Random(1)
    tokens = CountingList(rng.randrange(50) for _ in range(length))
    proposer = NgramProposer()
    for _ in range(INDEXED_LOOKS):
        tokens.append(rng.randrange(50))
        proposer.look(tokens)
    index = proposer._text
    assert isinstance(index, NgramIndex)
    index._tokens = CountingList(index._tokens)
    tokens.num_read = 0
    num_tokens, num_entries = 200, len(index._short) + len(index._long)
    for _ in range(num_tokens):
        tokens.append(rng.randrange(50))
        proposer.look(tokens)
        proposer.propose(4)
    assert tokens.num_read == num_tokens
    assert index._tokens.num_read <= num_tokens * (4 * LONGEST + 8)
    assert len(index._short) + len(index._long) - num_entries <= 2 * num_tokens
