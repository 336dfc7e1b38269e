import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isthmus.text.breakers import Breakers, byte_automaton
from isthmus.text.phrases import Phrases
from isthmus.text.vocabulary import VocabularyBytes

SPELLINGS = [b"a", b"b", b"ab", b"bab", b"\n", b"a\nb", b" ", b"", b"x"]
DEFAULT = ("\n", ":", '"', "*")
STRINGS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=5)


def expected_flags(tokens, strings):
    """By looking for every string at every end."""
    flags, text = [], b""
    for token in tokens:
        begin, text = len(text), text + SPELLINGS[token]
        ends = range(begin + 1, len(text) + 1)
        flags.append(any(text[:end].endswith(string.encode()) for end in ends for string in strings))
    return flags


@given(STRINGS, st.lists(st.integers(0, len(SPELLINGS) - 1), max_size=30))
def test_breakers_are_found_across_tokens(strings, tokens):
    breakers = Breakers(strings, VocabularyBytes(SPELLINGS))
    flags, state = breakers.scan(tokens)
    assert flags.tolist() == expected_flags(tokens, strings)
    walked = 0
    for token, flag in zip(tokens, flags, strict=True):
        walked, is_breaker = breakers.step(walked, token)
        assert is_breaker == flag
    assert state == walked


def test_sets_of_single_characters_need_one_state():
    assert byte_automaton([text.encode() for text in DEFAULT]).shape == (1, 256)
    assert byte_automaton([b"ab", b"\n"]).shape == (2, 256)


def test_ids_beyond_the_vocabulary_are_nothing():
    breakers = Breakers(["ab"], VocabularyBytes(SPELLINGS))
    assert breakers.scan([0, 99, 1])[0].tolist() == [False, False, True]


@pytest.mark.parametrize("string", ["", "\ud800"], ids=["empty", "half a pair"])
def test_strings_that_are_none_are_refused(string):
    with pytest.raises(ValueError, match="dry_sequence_breakers"):
        Breakers([string], VocabularyBytes(SPELLINGS))


def test_bytes_of_a_token_are_counted():
    vocabulary = VocabularyBytes(SPELLINGS)
    assert vocabulary.uses_of(b"a\n").tolist() == [1, 0, 1, 1, 1, 2, 0, 0, 0]
    assert np.array_equal(np.diff(vocabulary.offsets), [len(token) for token in SPELLINGS])


@pytest.mark.parametrize("kind", ["demo", "sentencepiece"])
def test_real_tokens_break_where_their_text_does(kind, request):
    """A line's end, and a breaker that no token spells, in tokens that are cut anywhere."""
    tokenizer = request.getfixturevalue(kind)
    text = "Anna: hello\nBert: hello, Anna\n\nAnna: I said hello."
    ids = tokenizer.encode(text, add_special_tokens=False)
    flags, _ = Phrases(tokenizer).breakers(["\n", "t: h"]).scan(ids)
    spelled = "".join(tokenizer.token_text(token) for token in ids)
    ends = np.cumsum([len(tokenizer.token_text(token)) for token in ids])
    wanted = {i for i, character in enumerate(spelled) if character == "\n" or spelled[i - 3 : i + 1] == "t: h"}
    assert {int(np.searchsorted(ends, i, side="right")) for i in wanted} == set(np.flatnonzero(flags).tolist())


def test_a_set_is_compiled_once(demo):
    phrases = Phrases(demo)
    assert phrases.breakers(["a", "b"]) is phrases.breakers(("a", "b", "a"))


@pytest.mark.parametrize("kind", ["demo", "sentencepiece"])
def test_bad_words_alone_and_after_a_space(kind, request):
    tokenizer = request.getfixturevalue(kind)
    words = Phrases(tokenizer).bad_words(["dog", "\n"])
    assert set(words) == {tuple(tokenizer.encode(text, add_special_tokens=False)) for text in ("dog", " dog", "\n")}


def test_bad_words_that_are_no_text_are_refused(demo):
    with pytest.raises(ValueError, match="bad_words"):
        Phrases(demo).bad_words(["\ud800"])
