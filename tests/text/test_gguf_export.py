"""The exported folder, read back by transformers' own (torch-free) classes."""

import json
from pathlib import Path

import pytest
from isthmus.tests.text.vocabularies import (
    LLAMA3_REGEX,
    TEXTS,
    make_header,
    metadata_of,
    model_metadata,
    sentencepiece_metadata,
    trained_byte_level,
)
from isthmus.text.gguf_export import end_ids, export_gguf
from isthmus.text.gguf_tokenizer import TokenType, gguf_vocabulary
from isthmus.text.pooling_config import PoolingConfig
from isthmus.text.tokenizer import Tokenizer
from transformers import PreTrainedTokenizerFast


def test_demo_folder_means_the_same_to_transformers(demo_folder: Path, demo: Tokenizer) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(demo_folder)
    for text in TEXTS:
        assert demo.encode(text) == theirs.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    assert theirs.chat_template == (demo_folder / "chat_template.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_exported_folder_keeps_ids_and_bos(kind: str, tmp_path: Path) -> None:
    byte_level = metadata_of(trained_byte_level(LLAMA3_REGEX, ignore_merges=True), "llama-bpe")
    vocabulary = sentencepiece_metadata() if kind == "sentencepiece" else byte_level
    num_tokens = len(vocabulary["tokenizer.ggml.tokens"])
    export_gguf(make_header(model_metadata() | vocabulary, vocab_size=num_tokens), tmp_path)
    ours, theirs = Tokenizer.from_folder(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert ours.bos_id == vocabulary["tokenizer.ggml.bos_token_id"]
    assert ours.vocab_size == num_tokens
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text)[0] == ours.bos_id
    assert not (tmp_path / "chat_template.jinja").exists()


def test_an_embedding_model_says_how_it_pools(tmp_path: Path) -> None:
    vocabulary = sentencepiece_metadata()
    num_tokens = len(vocabulary["tokenizer.ggml.tokens"])
    for number, folder in ((1, "mean"), (None, "plain")):
        metadata = model_metadata(**({} if number is None else {"pooling_type": number})) | vocabulary
        (tmp_path / folder).mkdir()
        export_gguf(make_header(metadata, vocab_size=num_tokens), tmp_path / folder)
    assert PoolingConfig.from_folder(tmp_path / "mean") == PoolingConfig("mean", normalize=True)
    assert not (tmp_path / "plain" / "modules.json").exists()


def test_generation_config_of_the_demo_model(demo_folder: Path) -> None:
    generation = json.loads((demo_folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2], "pad_token_id": 2}


def test_end_ids_are_the_declared_and_the_known_control_tokens() -> None:
    metadata = sentencepiece_metadata()
    extra = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|im_start|>", "custom"]
    kinds = [TokenType.CONTROL, TokenType.NORMAL, TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL]
    first = len(metadata["tokenizer.ggml.tokens"])
    metadata = metadata | {
        "tokenizer.ggml.tokens": metadata["tokenizer.ggml.tokens"] + extra,
        "tokenizer.ggml.token_type": metadata["tokenizer.ggml.token_type"] + kinds,
        "tokenizer.ggml.scores": metadata["tokenizer.ggml.scores"] + [0.0] * 5,
        "tokenizer.ggml.eom_token_id": first + 4,
    }
    assert end_ids(gguf_vocabulary(metadata)) == [2, first, first + 2, first + 4]
