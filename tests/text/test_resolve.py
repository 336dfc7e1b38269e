"""MODEL to a cached folder: every kind of MODEL, the cache, the digest, and what goes wrong."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isthmus.tests.helpers import demo_model_path
from isthmus.tests.text.vocabularies import LLAMA3_REGEX, SPECIAL, trained_byte_level
from isthmus.text import resolve as module
from isthmus.text.chat_template import load_chat_template
from isthmus.text.pooling_config import PoolingConfig
from isthmus.text.resolve import ResolvedModel, ResolveError, cached_folder, make, resolve
from isthmus.text.tokenizer import Tokenizer
from isthmus.text.weights_digest import MAX_SAMPLES, SAMPLE_BYTES, sample_offsets, weights_digest
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast


def write_weights(path: Path, seed: int = 0, rows: int = 64) -> None:
    generator = np.random.default_rng(seed)
    save_file({"a": generator.normal(size=(rows, 8)).astype(np.float32), "b": np.zeros(3, np.float16)}, path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    backend = trained_byte_level(LLAMA3_REGEX)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[1])
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    config = {"model_type": "llama", "vocab_size": 512, "eos_token_id": 7}
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors")
    return folder


def test_demo_model_in_a_child_process(tmp_path: Path) -> None:
    source = str(demo_model_path())
    resolved = resolve(source, tmp_path)
    assert resolved.source == source
    assert resolved.weights == demo_model_path()
    assert resolved.config()["architectures"] == ["LlamaForCausalLM"]
    assert resolved.generation_config()["eos_token_id"] == [0, 2]
    assert Tokenizer.from_folder(resolved.folder).encode("12345") == [33, 34, 35, 36, 37]
    assert resolved.weights_digest == weights_digest(resolved.weights) == "8f2ff7462c1f4eaacd52db0a34ec1fe1"


def test_hugging_face_folder(model: Path, tmp_path: Path) -> None:
    resolved = make(str(model), tmp_path / "cache", "weights")
    theirs = PreTrainedTokenizerFast.from_pretrained(model)
    ours = Tokenizer.from_folder(resolved.folder)
    assert ours.encode("The dog<|end|>") == theirs.encode("The dog<|end|>")
    assert ours.eos_ids == {7, theirs.eos_token_id}
    assert resolved.weights == model
    assert resolved.tokenizer_digest == ours.digest()
    template = load_chat_template(resolved.folder)
    assert template is not None
    assert template.source == "{{ messages[0].content }}"


def test_configs_of_modules_come_along(model: Path, tmp_path: Path) -> None:
    steps = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    entries = [{"idx": i, "path": path, "type": f"sentence_transformers.models.{name}"} for i, (name, path) in
               enumerate(steps)]  # fmt: skip
    (model / "modules.json").write_text(json.dumps(entries))
    (model / "1_Pooling").mkdir()
    for mode in ("cls", "mean"):
        (model / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
        resolved = make(str(model), tmp_path / "cache", "tokenizer")
        assert PoolingConfig.from_folder(resolved.folder) == PoolingConfig(mode, normalize=True)


def test_the_cache_answers_until_the_model_changes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = make(str(model), cache, "weights")
    monkeypatch.setattr(module, "run_resolver", pytest.fail)
    monkeypatch.setattr(module, "build", pytest.fail)
    assert resolve(str(model), cache) == first
    os.utime(model / "config.json", ns=(1, 1))
    assert cached_folder(model, cache, "weights") != first.folder
    assert cached_folder(model, cache, "tokenizer") != cached_folder(model, cache, "weights")


def test_less_is_needed_for_dummy_weights_and_for_the_tokenizer_alone(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \.safetensors files"):
        make(str(model), tmp_path, "weights")
    assert make(str(model), tmp_path, "tokenizer").weights_digest == ""
    dummy = make(str(model), tmp_path, "config").weights_digest
    assert len(dummy) == 32
    (model / "config.json").write_text('{"vocab_size": 513}')
    assert make(str(model), tmp_path, "config").weights_digest != dummy


def test_load_format_and_tokenizer_only_choose_what_is_needed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = []

    def run_resolver(model: str, cache: Path, need: str, offline: bool) -> ResolvedModel:
        needs.append((need, offline))
        return ResolvedModel(model, cache, cache, "", "")

    monkeypatch.setattr(module, "run_resolver", run_resolver)
    resolve(str(model), tmp_path)
    resolve(str(model), tmp_path, load_format="dummy")
    resolve("owner/name", tmp_path, load_format="dummy", tokenizer_only=True, offline=True)
    assert needs == [("weights", False), ("config", False), ("tokenizer", True)]


@pytest.mark.parametrize(
    "name", ["no/such/folder", "/no/such", "missing.gguf", "owner/missing.gguf", "plain", "", "~x/y"]
)
def test_what_is_nothing_is_said_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "run_resolver", pytest.fail)
    with pytest.raises(ResolveError, match=r"neither a folder, nor a \.gguf file, nor a hub id"):
        resolve(name, tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ResolveError, match=r"not a \.gguf file"):
        resolve(str(tmp_path / "model.bin"), tmp_path)


def test_errors_of_the_child_come_back_as_sentences(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ResolveError, match=r"broken\.gguf is a broken GGUF file"):
        resolve(str(broken), tmp_path / "cache")
    assert list((tmp_path / "cache" / "resolved").iterdir()) == []


def test_hub_id_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ResolveError, match="the hub model owner/name cannot be fetched"):
        resolve("owner/name", tmp_path, offline=True)


def test_hub_id_from_the_hubs_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hf" / "hub" / "models--owner--name"
    revision = "0" * 40
    shutil.copytree(model, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    resolved = resolve("owner/name", tmp_path / "cache", offline=True)
    assert resolved.weights == repository / "snapshots" / revision
    assert resolved.weights_digest == weights_digest(model)


def test_configs_of_modules_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fetch(model: str, *, allow_patterns: list[str], **how: Any) -> str:
        asked.append(allow_patterns)
        (tmp_path / "modules.json").write_text('[{"type": "x.Transformer", "path": ""}, {"type": "x", "path": "1_P"}]')
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert module.download("owner/name", "tokenizer") == tmp_path
    assert asked[1:] == [["1_P/config.json"]]


def test_torch_s_own_format_is_fetched_for_heads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fetch(model: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for need in ("weights", "head", "tokenizer"):
        assert module.download("owner/name", need) == tmp_path
    weights, head, tokenizer = map(set, asked)
    assert weights - tokenizer == {"*.safetensors"}
    assert head - tokenizer == {"*.safetensors", "pytorch_model.bin"}


def test_a_folder_without_tokenizer_or_config(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(ResolveError, match="has no tokenizer: neither"):
        make(str(model), tmp_path, "weights")
    (model / "config.json").unlink()
    with pytest.raises(ResolveError, match="it has no config"):
        make(str(model), tmp_path, "weights")


def test_an_older_tokenizer_is_converted(model: Path, tmp_path: Path) -> None:
    backend = trained_byte_level(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    (model / "tokenizer.json").unlink()
    backend.model.save(str(model))
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    resolved = resolve(str(model), tmp_path / "cache", tokenizer_only=True)
    text = "The quick brown fox doesn't jump, 12345 🙂"
    assert Tokenizer.from_folder(resolved.folder).encode(text) == backend.encode(text).ids


def test_two_at_once_agree(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(str(model), tmp_path, "weights")
    assert module.build(str(model), model, first.folder, "weights") == first
    assert len(list((tmp_path / "resolved").iterdir())) == 1


def test_digest_is_of_content_alone(model: Path, tmp_path: Path) -> None:
    digest = weights_digest(model)
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    shutil.copyfile(model / "model.safetensors", copied / "model.safetensors")
    os.utime(copied / "model.safetensors", ns=(1, 1))
    assert weights_digest(copied) == digest
    write_weights(model / "model.safetensors", seed=1)
    assert weights_digest(model) != digest
    write_weights(model / "model.safetensors", rows=65)
    assert weights_digest(model) != digest


def test_digest_samples_large_files_evenly(tmp_path: Path) -> None:
    num_bytes = 10 * MAX_SAMPLES * SAMPLE_BYTES
    offsets = list(sample_offsets(num_bytes))
    assert len(offsets) == MAX_SAMPLES
    assert (offsets[0], offsets[-1]) == (0, num_bytes - SAMPLE_BYTES)
    assert {b - a for a, b in pairwise(offsets)} <= {offsets[1], offsets[1] + 1}
    write_weights(tmp_path / "model.safetensors", rows=num_bytes // 32)
    digest = weights_digest(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert weights_digest(tmp_path) != digest


def test_digest_of_broken_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        weights_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"{{{{")
    with pytest.raises(ValueError, match="its header is not JSON"):
        weights_digest(tmp_path)
