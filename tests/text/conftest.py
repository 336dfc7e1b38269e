"""The demo model's text files, exported once, and small tokenizers of the two kinds."""

from pathlib import Path

import pytest
from isthmus.tests.helpers import demo_model_path
from isthmus.tests.text.vocabularies import sentencepiece_metadata
from isthmus.text.gguf_export import export_gguf
from isthmus.text.gguf_metadata import GgufHeader, read_gguf
from isthmus.text.gguf_tokenizer import gguf_tokenizer, gguf_vocabulary
from isthmus.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def demo_header() -> GgufHeader:
    return read_gguf(demo_model_path())


@pytest.fixture(scope="session")
def demo_folder(demo_header: GgufHeader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    export_gguf(demo_header, folder)
    return folder


@pytest.fixture(scope="session")
def demo(demo_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(demo_folder)


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    vocabulary = gguf_vocabulary(sentencepiece_metadata())
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Tokenizer(gguf_tokenizer(vocabulary), special_tokens=special_tokens, eos_ids=frozenset([2]))
