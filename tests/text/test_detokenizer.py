"""Incremental decoding against decoding at once."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.tests.text.vocabularies import TEXTS
from isthmus.text.detokenizer import Detokenizer
from isthmus.text.tokenizer import Tokenizer

CHARACTERS = st.characters(codec="utf-8")
WRITTEN = st.text(st.one_of(CHARACTERS, st.sampled_from("日本語中文한국어🙂👍🏽👩‍👩‍👧 \n")), max_size=40)
BYTE_RUN = re.compile("(?:<0x[0-9A-F]{2}>)+")


def pieces(tokenizer: Tokenizer, ids: Sequence[int], tail: Sequence[int] = (), skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, tail, skip_special_tokens=skip)
    return [*(detokenizer.push([token_id]) for token_id in ids), detokenizer.flush()]


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=30), skip=st.booleans())
def test_any_ids_of_the_demo_model(ids: list[int], skip: bool, demo: Tokenizer) -> None:
    assert "".join(pieces(demo, ids, skip=skip)) == demo.decode(ids, skip_special_tokens=skip)


def test_every_token_of_the_demo_model(demo: Tokenizer) -> None:
    for token_id in range(demo.vocab_size):
        assert "".join(pieces(demo, [token_id], skip=False)) == demo.decode([token_id], skip_special_tokens=False)


@settings(deadline=None)
@given(text=WRITTEN, data=st.data())
def test_text_comes_back_whole_in_pieces(text: str, data: st.DataObject, demo: Tokenizer) -> None:
    ids = demo.encode(text)
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = Detokenizer(demo)
    first, second, rest = detokenizer.push(ids[:cut]), detokenizer.push(ids[cut:]), detokenizer.flush()
    assert (first + second, rest) == (demo.decode(ids), "")
    assert text.startswith(first) or demo.decode(ids) != text


@settings(deadline=None)
@given(text=WRITTEN)
def test_sentencepiece_text(text: str, sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode(text)
    out = pieces(sentencepiece, ids)
    assert "".join(out) == sentencepiece.decode(ids)
    assert out[-1] == ""


def is_mixed(run: str) -> bool:
    """Whether a run of byte tokens holds both whole characters and invalid bytes."""
    data = bytes.fromhex(run.replace("<0x", "").replace(">", ""))
    return "\ufffd" in data.decode(errors="replace") and bool(data.decode(errors="ignore"))


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 380), max_size=12))
def test_any_sentencepiece_ids(ids: list[int], sentencepiece: Tokenizer) -> None:
    shown = [i for i in ids if i not in sentencepiece.special_ids]
    tokens = "".join(f"<0x{i - 3:02X}>" if 3 <= i < 259 else " " for i in shown)
    ours, theirs = "".join(pieces(sentencepiece, ids)), sentencepiece.decode(ids)
    if any(is_mixed(run) for run in BYTE_RUN.findall(tokens)):
        assert ours.replace("\ufffd", "") != ours  # characters kept, the invalid bytes replaced
    else:
        assert ours == theirs


def test_characters_before_invalid_bytes_are_kept(sentencepiece: Tokenizer) -> None:
    ids = [byte + 3 for byte in "語".encode() + b"\xff"]
    assert pieces(sentencepiece, ids) == ["", "", "語", "\ufffd", ""]


@pytest.mark.parametrize("text", ["🙂", "語", "👩‍👩‍👧", "é🙂語"])
def test_never_half_a_character(text: str, demo: Tokenizer, sentencepiece: Tokenizer) -> None:
    for tokenizer in (demo, sentencepiece):
        out = pieces(tokenizer, tokenizer.encode(text))
        assert "".join(out) == text
        assert all("\ufffd" not in piece for piece in out)


def test_unfinished_character_ends_as_replacement(demo: Tokenizer, sentencepiece: Tokenizer) -> None:
    ids = demo.encode("🙂")
    assert pieces(demo, ids[:-1])[-1] == "\ufffd"
    assert pieces(demo, [*ids[:1], *demo.encode("a")])[1:] == ["\ufffda", ""]
    fallback = [byte + 3 for byte in "語".encode()[:2]]
    assert pieces(sentencepiece, fallback) == ["", "", sentencepiece.decode(fallback)]


def test_special_tokens_are_skipped_or_shown(demo: Tokenizer) -> None:
    ids = demo.encode("a<|im_end|>b")
    assert pieces(demo, ids) == ["a", "", "b", ""]
    assert pieces(demo, ids, skip=False) == ["a", "<|im_end|>", "b", ""]


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_a_copy_goes_on_alone(text: str, demo: Tokenizer) -> None:
    ids = demo.encode(text)
    detokenizer, given = Detokenizer(demo), ""
    for cut in range(len(ids)):
        twin = detokenizer.copy()
        assert given + twin.push(ids[cut:]) + twin.flush() == demo.decode(ids)
        given += detokenizer.push(ids[cut : cut + 1])
    assert given + detokenizer.flush() == demo.decode(ids)


def test_ids_without_a_token_are_empty(demo: Tokenizer) -> None:
    assert pieces(demo, [49152, 10**6]) == ["", "", ""]


def test_leading_space_belongs_to_the_continuation(sentencepiece: Tokenizer) -> None:
    whole = sentencepiece.encode("the dog")
    cut = next(i for i in range(2, len(whole)) if sentencepiece.decode(whole[i:]) == "dog")
    assert "".join(pieces(sentencepiece, whole[cut:])) == "dog"
    assert "".join(pieces(sentencepiece, whole[cut:], tail=whole[:cut])) == " dog"
    assert "".join(pieces(sentencepiece, whole[cut:], tail=[1])) == "dog"
    assert "".join(pieces(sentencepiece, sentencepiece.encode("  two"))) == "  two"


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_prompt_tail_is_not_repeated_and_its_character_is_finished(text: str, demo: Tokenizer) -> None:
    ids = demo.encode(text)
    for cut in range(len(ids) + 1):
        before = demo.decode(ids[:cut]).rstrip("\ufffd")
        assert before + "".join(pieces(demo, ids[cut:], tail=ids[:cut])) == demo.decode(ids)
