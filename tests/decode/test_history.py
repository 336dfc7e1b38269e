import math
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.decode.history import History
from isthmus.decode.history_matches import UNDO_DEPTH, MatchIndex
from isthmus.kernels.history_rules import MAX_COMPARED, MAX_PENALTY, find_matches
from isthmus.tests.decode import history_reference as reference
from isthmus.text.breakers import Breakers
from isthmus.text.vocabulary import VocabularyBytes
from isthmus.wire.sampling import SamplingParams
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

SPELLINGS = [b"a", b"b", b"ab", b"ba", b"\n", b"a\n", b" ", b""]
WORDS = ((3,), (0, 1), (1, 1, 2), (0, 0, 0, 5))


class ToyPhrases:
    """Of the vocabulary `SPELLINGS`; a word is the digits of its tokens."""

    vocabulary = VocabularyBytes(SPELLINGS)

    def breakers(self, strings):
        return Breakers(strings, self.vocabulary)

    def bad_words(self, words):
        return tuple(tuple(int(digit) for digit in word) for word in words)


def history_of(params, prompt, output=()):
    return History(params, prompt, output, ToyPhrases())


def params_of(draw):
    return SamplingParams(
        dry_multiplier=0.8,
        dry_base=draw(st.sampled_from([1.0, 1.75, 3.0])),
        dry_allowed_length=draw(st.integers(0, 4)),
        dry_range=draw(st.sampled_from([-1, 0, 1, 2, 7, 40])),
        dry_sequence_breakers=draw(st.sampled_from([(), ("\n",), ("ab", "\n"), ("aba", "bb")])),
        no_repeat_ngram_size=draw(st.integers(1, 4)),
        bad_words=tuple("".join(map(str, word)) for word in WORDS),
        repetition_penalty=draw(st.sampled_from([0.5, 1.3, 2.0])),
        repetition_penalty_range=draw(st.sampled_from([0, 1, 5, 8, 100])),
        repetition_penalty_slope=draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])),
    )


def check_history(history, params, prompt, output):
    """All it says is what the definitions say."""
    tokens = [*prompt, *output]
    flags = reference.breaker_flags(tokens, SPELLINGS, params.dry_sequence_breakers)
    ids, losses = history.dry()
    expected = reference.dry(tokens, flags, params)
    assert sorted(ids.tolist()) == sorted(expected)
    np.testing.assert_allclose(losses, [expected[token] for token in ids.tolist()], rtol=1e-6)
    for found, wanted in (
        (history.banned(), reference.repeated_ngrams(tokens, params.no_repeat_ngram_size)),
        (history.bad_words(), reference.completed_words(output, WORDS)),
    ):
        assert found.dtype == torch.int64
        assert sorted(found.tolist()) == sorted(wanted)
    check_penalties(history, params, tokens, Counter(output))


def check_penalties(history, params, tokens, counts):
    ids, num_output, penalties = history.penalties()
    assert ids.tolist() == list(dict.fromkeys(tokens))
    assert num_output.tolist() == [counts[token] for token in ids.tolist()]
    expected = reference.repetition(tokens, params)
    assert penalties.tolist() == [expected.get(token, 1.0) for token in ids.tolist()]


TOKENS = st.lists(st.integers(0, len(SPELLINGS) - 1), max_size=30) | st.lists(st.sampled_from([0, 1]), max_size=60)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), prompt=TOKENS, output=TOKENS, steps=st.lists(st.integers(0, 7) | st.just(-3), max_size=25))
def test_history_is_that_of_the_definitions(data, prompt, output, steps):
    """From any beginning, token by token, with some taken back."""
    params, output = params_of(data.draw), list(output)
    history, given_output = history_of(params, prompt, output), len(output)
    check_history(history, params, prompt, output)
    for step in steps:
        if step >= 0:
            history.append(step)
            output.append(step)
        else:
            count = min(-step, len(output) - given_output)
            history.undo(count)
            del output[len(output) - count :]
        check_history(history, params, prompt, output)


@pytest.mark.parametrize("count", [1, UNDO_DEPTH, UNDO_DEPTH + 1, 40])
def test_undo_leaves_what_was_before(count):
    """Also where it takes back more than is remembered."""
    keys = [i * i % 7 for i in range(50)]
    index = MatchIndex(keys, window=31)
    for key in (keys * 2)[:40]:
        index.append(key)
    index.undo(count)
    index.append(3)
    expected = find_matches(np.array([*keys, *keys[: 40 - count], 3]), window=31)
    assert index.matches.positions.tolist() == expected.positions.tolist()
    assert index.matches.lengths.tolist() == expected.lengths.tolist()


@pytest.mark.parametrize("period", [1, 2, 7, 200])
@pytest.mark.parametrize("length", [MAX_COMPARED - 1, MAX_COMPARED, MAX_COMPARED + 1, 250])
def test_long_matches_are_found_as_short_ones_are(length, period):
    """Where a text repeats itself for longer than keys are compared one by one; a breaker ends a match."""
    keys = np.array([i % period for i in range(length)])
    keys[length // 3] = -1
    index = MatchIndex(())
    for key in keys.tolist():
        index.append(key)
    found = find_matches(keys)
    assert found.positions.tolist() == index.matches.positions.tolist()
    assert found.lengths.tolist() == index.matches.lengths.tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_repeated_ngrams_are_those_of_transformers(size):
    tokens = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(size)).tolist()
    history = history_of(SamplingParams(no_repeat_ngram_size=size), tokens[:100])
    for end in range(100, 300):
        scores = NoRepeatNGramLogitsProcessor(size)(torch.tensor([tokens[:end]]), torch.zeros(1, 8))
        assert sorted(history.banned().tolist()) == (scores[0] == -math.inf).nonzero().flatten().tolist()
        history.append(tokens[end])


def test_repetition_without_a_range_is_that_of_transformers():
    generator = torch.Generator().manual_seed(1)
    tokens, logits = torch.randint(0, 50, (1, 40), generator=generator), torch.randn(1, 100, generator=generator)
    history = history_of(SamplingParams(repetition_penalty=1.3), tokens[0, :30].tolist(), tokens[0, 30:].tolist())
    ids, _, penalties = history.penalties()
    penalised, seen = logits.clone(), logits[0, ids]
    penalised[0, ids] = torch.where(seen > 0, seen / penalties, seen * penalties)
    torch.testing.assert_close(penalised, RepetitionPenaltyLogitsProcessor(1.3)(tokens, logits))


def test_lengths_have_no_cap():
    """39 tokens repeated count 39, and allowed_length is a condition: a shorter repeat costs nothing."""
    text = list(range(100, 140))
    params = SamplingParams(dry_multiplier=1.0, dry_base=1.1, dry_allowed_length=5, dry_sequence_breakers=())
    history = history_of(params, [*text, 7, *text[:4]])
    assert history.dry()[0].tolist() == []
    for token in text[4:39]:
        history.append(token)
    ids, losses = history.dry()
    assert ids.tolist() == [139]
    assert losses.tolist() == pytest.approx([1.1 ** (39 - 5)])


def test_a_match_of_one_token_counts():
    history = history_of(SamplingParams(dry_multiplier=0.5, dry_allowed_length=1), [0, 1, 0])
    assert [part.tolist() for part in history.dry()] == [[1], [0.5]]


def test_a_word_is_banned_in_the_output_only():
    history = history_of(SamplingParams(bad_words=("01", "2")), [0])
    assert history.bad_words().tolist() == [2]
    history.append(0)
    assert sorted(history.bad_words().tolist()) == [1, 2]


@pytest.mark.parametrize(("length", "limit_s"), [(1024, 2e-3), (32_768, 20e-3)])
def test_equal_tokens_are_no_scan(length, limit_s):
    """The case that took others 38 s; the limits leave room for a busy machine."""
    params = SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=())
    history = history_of(params, [5] * length)
    elapsed = []
    for step in range(20):
        began = time.perf_counter()
        history.append(5)
        ids, losses = history.dry()
        elapsed.append(time.perf_counter() - began)
        assert ids.tolist() == [5]
        assert losses.item() == np.float32(MAX_PENALTY), step
    assert min(elapsed) < limit_s


def test_what_is_not_asked_for_says_nothing():
    history = History(SamplingParams(), [1, 2, 1, 2], [1, 2], None)
    history.append(1)
    assert history.dry()[0].tolist() == history.banned().tolist() == history.bad_words().tolist() == []
    assert [part.tolist() for part in history.penalties()] == [[], [], []]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(dry_multiplier=1.0), "dry_sequence_breakers"),
        (SamplingParams(bad_words=("x",)), "bad_words"),
    ],
    ids=["breakers", "bad words"],
)
def test_strings_need_a_tokenizer(params, field):
    with pytest.raises(ValueError, match=field):
        History(params, [1], [], None)
