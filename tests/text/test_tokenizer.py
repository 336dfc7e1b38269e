"""Encoding, the one BOS, end tokens, id checks."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from isthmus.tests.text.vocabularies import LLAMA3_REGEX, TEXTS, trained_byte_level
from isthmus.text.tokenizer import Tokenizer
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models
from tokenizers.processors import TemplateProcessing


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("12345", [33, 34, 35, 36, 37]),
        ("a1b2", [81, 33, 82, 34]),
        ("<|im_start|>user\nHi<|im_end|>", [1, 4093, 198, 26843, 2]),
        ("", []),
    ],
)
def test_known_ids_of_the_demo_model(demo: Tokenizer, text: str, ids: list[int]) -> None:
    assert demo.encode(text) == ids


@pytest.mark.parametrize("text", [*TEXTS, "\x00\ufffd\u2028", "🏳️‍🌈" * 3])
def test_round_trip(demo: Tokenizer, sentencepiece: Tokenizer, text: str) -> None:
    assert demo.decode(demo.encode(text), skip_special_tokens=False) == text
    assert sentencepiece.decode(sentencepiece.encode(text)) == text


def test_demo_model_facts(demo: Tokenizer) -> None:
    assert (demo.bos_id, demo.adds_bos, demo.vocab_size) == (1, False, 49152)
    assert demo.eos_ids == {0, 2}
    assert demo.special_ids == frozenset(range(17))
    assert demo.token_text(33) == "1"
    assert demo.token_text(1) == "<|im_start|>"
    assert demo.token_text(demo.encode("é")[0])


def folder_with(tmp_path: Path, tokenizer: BackendTokenizer, **files: Any) -> Path:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def llama3(bos_by_post_processor: bool) -> BackendTokenizer:
    tokenizer = trained_byte_level(LLAMA3_REGEX)
    if bos_by_post_processor:
        bos = ("<|begin|>", tokenizer.token_to_id("<|begin|>"))
        tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", pair=None, special_tokens=[bos])
    return tokenizer


TOKENS = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>", "special": True}}


@pytest.mark.parametrize(
    ("post_processor", "config", "adds"),
    [
        (True, TOKENS, True),
        (False, TOKENS, False),
        (False, TOKENS | {"add_bos_token": True}, True),
        (True, TOKENS | {"add_bos_token": False}, False),
        (True, {}, False),
    ],
)
def test_exactly_one_bos(post_processor: bool, config: dict[str, Any], adds: bool, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, llama3(post_processor), tokenizer_config=config))
    assert tokenizer.adds_bos is adds
    if not adds:
        assert tokenizer.encode_chat("dog") == tokenizer.encode("dog", add_special_tokens=False)
        return
    assert tokenizer.bos_id is not None
    bos, plain = tokenizer.bos_id, tokenizer.encode("dog", add_special_tokens=False)
    for text in ("dog", "<|begin|>dog", "<|begin|><|begin|>dog"):
        assert tokenizer.encode(text) == [bos, *plain]
        assert tokenizer.encode_chat(text) == [bos, *plain]
    assert tokenizer.encode("dog<|begin|>").count(bos) == 2
    assert tokenizer.encode("") == tokenizer.encode_chat("") == [bos]


def test_chat_never_ends_with_an_added_eos(tmp_path: Path) -> None:
    config = TOKENS | {"add_bos_token": True, "add_eos_token": True}
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, llama3(False), tokenizer_config=config))
    (eos,) = tokenizer.eos_ids
    assert tokenizer.encode("dog")[-1] == eos
    assert tokenizer.encode_chat("dog") == tokenizer.encode("dog")[:-1]


def test_end_ids_are_the_union(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        llama3(False),
        tokenizer_config=TOKENS,
        config={"eos_token_id": 7, "vocab_size": 500},
        generation_config={"eos_token_id": [8, 9]},
    )
    tokenizer = Tokenizer.from_folder(folder)
    end = tokenizer.encode("<|end|>", add_special_tokens=False)
    assert tokenizer.eos_ids == {7, 8, 9, *end}


def test_special_tokens_of_older_files_and_missing_flags(tmp_path: Path) -> None:
    backend = trained_byte_level(LLAMA3_REGEX)
    folder = folder_with(tmp_path, backend, special_tokens_map={"bos_token": "<|begin|>", "pad_token": "!"})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special_tokens == {"bos_token": "<|begin|>", "pad_token": "!"}
    assert backend.token_to_id("!") in tokenizer.special_ids


def test_ids_outside_the_model_are_found(tmp_path: Path, demo: Tokenizer) -> None:
    assert demo.invalid_id([0, 49151]) is None
    assert demo.invalid_id([5, 49152, -1]) == 49152
    assert demo.invalid_id([5, -1]) == -1
    backend = llama3(False)
    padded = Tokenizer.from_folder(folder_with(tmp_path, backend, config={"vocab_size": 1000}))
    assert padded.invalid_id([999]) is None
    assert padded.decode([999]) == padded.token_text(999) == ""
    (tmp_path / "config.json").unlink()
    assert Tokenizer.from_folder(tmp_path).vocab_size == backend.get_vocab_size()


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    backend = llama3(False)
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode("The quick brown fox")) == "The quick brown fox"


def framed(tmp_path: Path) -> Tokenizer:
    """That puts around texts what BERT's does."""
    backend = trained_byte_level(LLAMA3_REGEX)
    special = [(token, backend.token_to_id(token)) for token in ("<|begin|>", "<|end|>")]
    single, pair = "<|begin|> $A <|end|>", "<|begin|> $A <|end|> $B:1 <|end|>:1"
    backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return Tokenizer.from_folder(folder_with(tmp_path, backend))


def test_a_text_is_cut_within_what_is_put_around_it(tmp_path: Path) -> None:
    tokenizer = framed(tmp_path)
    begin, *own, end = whole = tokenizer.encode("abcdef")
    assert own == tokenizer.encode("abcdef", add_special_tokens=False)
    assert tokenizer.encode_within("abcdef", len(whole)) == whole
    assert tokenizer.encode_within("abcdef", len(whole) - 1) == [begin, *own[:-1], end]
    assert tokenizer.encode_within("abcdef", 3, add_special_tokens=False) == own[:3]
    with pytest.raises(ValueError, match="no room"):
        tokenizer.encode_within("abcdef", 2)


def test_of_a_pair_the_second_text_is_cut(tmp_path: Path) -> None:
    tokenizer, fox = framed(tmp_path), "the quick brown fox"
    (begin, *first, end), (_, *second, _) = tokenizer.encode("abc"), tokenizer.encode(fox)
    whole = tokenizer.encode_pair("abc", fox)
    assert whole == [begin, *first, end, *second, end]
    assert tokenizer.encode_pair("abc", fox, len(whole)) == whole
    assert tokenizer.encode_pair("abc", fox, len(whole) - 2) == [begin, *first, end, *second[:-2], end]
    with pytest.raises(ValueError, match="no room"):
        tokenizer.encode_pair("abc", fox, 3 + len(first))


@pytest.mark.parametrize("max_tokens", [2, 5, 9])
def test_a_text_that_brings_its_own_bos_is_cut_to_size(max_tokens: int, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(
        folder_with(tmp_path, llama3(bos_by_post_processor=True), tokenizer_config=TOKENS)
    )
    ids = tokenizer.encode_within("<|begin|>" + "hello " * 9, max_tokens)
    assert ids.count(tokenizer.bos_id) == 1
    assert ids == tokenizer.encode("hello " * 9)[: len(ids)]
    assert max_tokens - 1 <= len(ids) <= max_tokens


def test_half_a_surrogate_pair_is_refused(demo: Tokenizer) -> None:
    with pytest.raises(ValueError, match="half a surrogate pair at character 1"):
        demo.encode("a\ud83db")


def test_digest_is_of_the_vocabulary(demo: Tokenizer, tmp_path: Path) -> None:
    plain = Tokenizer.from_folder(folder_with(tmp_path, llama3(False)))
    with_bos = Tokenizer.from_folder(folder_with(tmp_path, llama3(True)))
    assert plain.digest() == with_bos.digest() != demo.digest()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_broken_configuration_is_named(content: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, llama3(False))
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|holds no JSON object)"):
        Tokenizer.from_folder(folder)


def test_unusable_tokenizers_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a usable tokenizer"):
        Tokenizer.from_folder(tmp_path)
    backend = BackendTokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="no decoder"):
        Tokenizer.from_folder(folder_with(tmp_path, backend))
    backend.decoder = decoders.CTC()
    with pytest.raises(ValueError, match=r"decoder \(CTC\) is not supported"):
        Tokenizer.from_folder(folder_with(tmp_path, backend))


def test_encoding_leaves_the_interpreter_free(demo: Tokenizer) -> None:
    text, done, ticks = "The quick brown fox. " * 20_000, threading.Event(), 0

    def encode() -> None:
        demo.encode(text)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    while not done.is_set():
        time.sleep(0.001)
        ticks += 1
    thread.join()
    assert ticks > 10  # with the GIL held throughout: one or two


def test_loads_neither_torch_nor_triton(demo_folder: Path) -> None:
    code = """
import sys
from pathlib import Path
from isthmus.text import chat_template, detokenizer, gguf_export, resolve, stop, tokenizer
folder = Path(sys.argv[1])
ours = tokenizer.Tokenizer.from_folder(folder)
prompt = chat_template.load_chat_template(folder).render([{"role": "user", "content": "hi"}])
detokenizer.Detokenizer(ours).push(ours.encode_chat(prompt))
assert not {"torch", "triton"} & sys.modules.keys(), "loaded"
"""
    subprocess.run([sys.executable, "-c", code, str(demo_folder)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("decoder", "tokens", "shown"),
    [
        (decoders.WordPiece(), {"[UNK]": 0, "read": 1, "##ing": 2}, ["read", "ing"]),
        (decoders.Metaspace(), {"[UNK]": 0, "▁read": 1, "ing": 2}, ["read", "ing"]),
    ],
)
def test_tokens_of_encoders_are_shown(tmp_path: Path, decoder: Any, tokens: dict[str, int], shown: list[str]) -> None:
    backend = BackendTokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    backend.decoder = decoder
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, backend))
    assert tokenizer.decode([1, 2]) == "".join(shown)
    assert [tokenizer.token_text(token_id) for token_id in (1, 2)] == [f" {shown[0]}", shown[1]]
    assert tokenizer.token_bytes.strip_left == 1
