"""Tokenizers rebuilt from GGUF metadata: against the originals, and against SentencePiece's own merging rule."""

import re
from itertools import pairwise

import pytest
from isthmus.tests.text.vocabularies import (
    LLAMA3_REGEX,
    QWEN2_REGEX,
    TEXTS,
    metadata_of,
    sentencepiece_metadata,
    trained_byte_level,
)
from isthmus.text.gguf_metadata import GgufHeader
from isthmus.text.gguf_tokenizer import PRE_TOKENIZERS, TokenType, gguf_tokenizer, gguf_vocabulary
from isthmus.text.tokenizer import Tokenizer as OurTokenizer
from tokenizers import Tokenizer, normalizers


@pytest.mark.parametrize("pre", ["llama3", "llama-v3", "llama-bpe"])
def test_llama3(pre: str) -> None:
    original = trained_byte_level(LLAMA3_REGEX, ignore_merges=True)
    rebuilt = gguf_tokenizer(gguf_vocabulary(metadata_of(original, pre)))
    for text in TEXTS:
        ids = original.encode(text, add_special_tokens=False).ids
        assert rebuilt.encode(text, add_special_tokens=False).ids == ids
        assert rebuilt.encode(text).ids == [rebuilt.token_to_id("<|begin|>"), *ids]
        assert rebuilt.decode(ids) == original.decode(ids)


def test_qwen2() -> None:
    original = trained_byte_level(QWEN2_REGEX)
    original.normalizer = normalizers.NFC()
    rebuilt = gguf_tokenizer(gguf_vocabulary(metadata_of(original, "qwen2")))
    for text in TEXTS:
        assert rebuilt.encode(text).ids == original.encode(text).ids
    assert rebuilt.encode("e\u0301").ids == rebuilt.encode("é").ids


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["We", "'ll", "ĠPAY", "Ġ2024", "Ġ", "Ġ€", "Ċ", "Ċ", "end"]),
        ("smollm", ["We", "'ll", "ĠPAY", "Ġ", "2", "0", "2", "4", "Ġ", "Ġ€", "Ċ", "Ċ", "end"]),
        ("llama3", ["We", "'ll", "ĠPAY", "Ġ", "202", "4", "Ġ", "Ġ€ĊĊ", "end"]),
        ("qwen2", ["We", "'ll", "ĠPAY", "Ġ", "2", "0", "2", "4", "Ġ", "Ġ€ĊĊ", "end"]),
        ("tekken", ["We", "'ll", "ĠPAY", "Ġ", "2", "0", "2", "4", "Ġ", "Ġ€ĊĊ", "end"]),
        ("deepseek-coder", ["We", "'", "ll", "ĠPAY", "Ġ", "2", "0", "2", "4", "ĠĠ", "€", "Ċ", "Ċ", "end"]),
        ("default", ["We", "'", "ll", "ĠPAY", "Ġ", "202", "4", "Ġ", "Ġ€", "Ċ", "Ċ", "end"]),
    ],
)
def test_pre_tokenizers_cut(pre: str, pieces: list[str]) -> None:
    cut = PRE_TOKENIZERS[pre].make().pre_tokenize_str("We'll PAY 2024  €\n\nend")
    assert [re.sub("âĤ¬", "€", piece) for piece, _ in cut] == pieces


def test_tekken_cuts_at_a_change_to_upper_case() -> None:
    cut = PRE_TOKENIZERS["tekken"].make().pre_tokenize_str("camelCaseHTTPServer path//x")
    assert [piece for piece, _ in cut] == ["camel", "Case", "HTTPServer", "Ġpath", "//", "x"]


def best_score_merges(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece BPE: again and again join the neighbours whose join has the best score, leftmost first."""
    pieces = list(text)
    while True:
        joins = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not joins:
            return pieces
        _, i = min(joins)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@pytest.mark.parametrize("text", TEXTS[:-1])
def test_sentencepiece_merges_by_score(text: str) -> None:
    metadata = sentencepiece_metadata()
    vocabulary = gguf_vocabulary(metadata)
    tokenizer = gguf_tokenizer(vocabulary)
    normal = vocabulary.ids_of(TokenType.NORMAL)
    scores = {vocabulary.tokens[i]: vocabulary.scores[i] for i in normal}
    expected: list[str] = []
    for piece in best_score_merges("▁" + text.replace(" ", "▁") if text else "", scores):
        expected += [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()]
    assert tokenizer.encode(text).tokens == ["<s>", *expected]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_sentencepiece_without_space_prefix() -> None:
    plain = gguf_tokenizer(
        gguf_vocabulary(
            sentencepiece_metadata() | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
        )
    )
    assert plain.encode("dog").tokens[0].startswith("d")
    assert plain.decode(plain.encode(" dog").ids) == " dog"


def test_special_tokens_are_parsed_and_skipped_user_defined_ones_only_parsed() -> None:
    metadata = metadata_of(trained_byte_level(LLAMA3_REGEX), "llama-bpe")
    types = list(metadata["tokenizer.ggml.token_type"])
    end = metadata["tokenizer.ggml.eos_token_id"]
    special = gguf_tokenizer(gguf_vocabulary(metadata))
    assert special.encode("a<|end|>", add_special_tokens=False).ids[-1] == end
    assert special.decode([end]) == ""
    types[end] = TokenType.USER_DEFINED
    user = gguf_tokenizer(gguf_vocabulary(metadata | {"tokenizer.ggml.token_type": types}))
    assert user.encode("a<|end|>", add_special_tokens=False).ids[-1] == end
    assert user.decode([end]) == "<|end|>"


def test_unused_tokens_cannot_be_spelled() -> None:
    metadata = metadata_of(trained_byte_level(LLAMA3_REGEX), "llama-bpe")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "PAD"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], TokenType.UNUSED]
    tokenizer = gguf_tokenizer(gguf_vocabulary(metadata))
    assert len(tokenizer.encode("PAD", add_special_tokens=False).ids) == 3


def test_add_eos() -> None:
    metadata = metadata_of(trained_byte_level(LLAMA3_REGEX), "gpt-2") | {"tokenizer.ggml.add_eos_token": True}
    tokenizer = gguf_tokenizer(gguf_vocabulary(metadata))
    assert tokenizer.encode("a").tokens == ["a", "<|end|>"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer model 'rwkv' is not supported"),
        ({"tokenizer.ggml.pre": "superbpe"}, "pre-tokenizer 'superbpe' is not supported"),
        ({"tokenizer.ggml.pre": None}, "pre-tokenizer 'None' is not supported"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "a token twice"),
        ({"tokenizer.ggml.tokens": []}, "no vocabulary"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type .* one value for each token"),
        ({"tokenizer.ggml.merges": []}, "no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab' is not two tokens"),
        ({"tokenizer.ggml.merges": ["x 龍"]}, "'x 龍' is of tokens that the vocabulary lacks"),
    ],
)
def test_what_cannot_be_stated_exactly_is_an_error(change: dict[str, object], sentence: str) -> None:
    metadata = metadata_of(trained_byte_level(LLAMA3_REGEX), "llama-bpe") | change
    with pytest.raises(ValueError, match=sentence):
        gguf_tokenizer(gguf_vocabulary(metadata))


def test_sentencepiece_needs_scores() -> None:
    metadata = {key: value for key, value in sentencepiece_metadata().items() if not key.endswith("scores")}
    with pytest.raises(ValueError, match="scores"):
        gguf_vocabulary(metadata)


def byte_pair_merges(word: str, ranks: dict[str, int]) -> list[str]:
    pieces = list(word)
    while True:
        pairs = [(ranks[f"{a} {b}"], i) for i, (a, b) in enumerate(pairwise(pieces)) if f"{a} {b}" in ranks]
        if not pairs:
            return pieces
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@pytest.mark.parametrize("word", ["Ġunbelievably", "ĠIsthmus", "ĠpreÃ§o", "internationalisation"])
def test_demo_model_merges_by_rank(word: str, demo_header: GgufHeader, demo: OurTokenizer) -> None:
    ranks = {merge: rank for rank, merge in enumerate(demo_header.metadata["tokenizer.ggml.merges"])}
    backend: Tokenizer = gguf_tokenizer(gguf_vocabulary(demo_header.metadata))
    text = word.replace("Ġ", " ").replace("Ã§", "ç")
    assert backend.encode(text).tokens == byte_pair_merges(word, ranks)
    assert demo.encode(text) == backend.encode(text).ids
