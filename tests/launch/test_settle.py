"""What `isthmus serve` would start on machines with GPUs, down to the command lines."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from isthmus.launch.arguments import read_config
from isthmus.launch.config import DecodeConfig, PrefillConfig, ServeConfig, SpeculationOptions
from isthmus.launch.hardware import Hardware
from isthmus.launch.main import make_parser
from isthmus.launch.process import ProcessSpec
from isthmus.launch.resolve import ConfigError
from isthmus.launch.serve import Settled, greeting, process_specs, settle
from isthmus.tests.helpers import demo_model_path
from isthmus.tests.launch.fake_nvml import GIB, gpu
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models

NO_GPU = Hardware(8, 16 * GIB, (), "no NVIDIA driver")
SPECULATIVE = ("--speculative-", "--num-speculative-")


def machine(num_gpus: int, **sizes: int) -> Hardware:
    return Hardware(8, 16 * GIB, tuple(gpu(index, **sizes) for index in range(num_gpus)))


def settled(folder: Path, hardware: Hardware, *arguments: str) -> Settled:
    command = ["serve", str(demo_model_path()), "--port", "0", *arguments]
    return settle(read_config(ServeConfig, make_parser().parse_args(command)), hardware, folder)


def read(spec: ProcessSpec) -> Any:
    parsed = make_parser().parse_args(list(spec.command)[3:])
    return read_config(parsed.command.config, parsed)


def test_two_gpus_just_work(tmp_path: Path) -> None:
    found = settled(tmp_path, machine(2), "--prefill", "1", "--decode", "1")
    router, prefill, decode = process_specs(found)
    assert read(router).model.max_model_len == 8192
    for spec, role, index, chunk in ((prefill, PrefillConfig, 0, 8192), (decode, DecodeConfig, 1, 2048)):
        config = read(spec)
        assert isinstance(config, role)
        assert (config.place.gpu, config.place.gpu_memory_share, config.device.device) == (index, 1.0, "cuda")
        assert (config.engine.max_num_seqs, config.engine.max_num_batched_tokens) == (256, chunk)
        assert (config.engine.kv_cache_memory_bytes, config.model.max_model_len) == (None, 8192)
        assert "CUDA_VISIBLE_DEVICES" not in spec.environment  # each must see its peer's GPU
    assert "(1 prefill + 1 decode workers on GPUs 0, 1; as given)" in greeting(found)


def test_on_one_gpu_both_roles_share_it_when_told_to(tmp_path: Path) -> None:
    found = settled(tmp_path, machine(1), "--prefill", "1")
    places = [read(spec).place for spec in process_specs(found)[1:]]
    assert [place.gpu for place in places] == [0, 0]
    assert places[0].gpu_memory_share < places[1].gpu_memory_share
    assert sum(place.gpu_memory_share for place in places) <= 1
    with pytest.raises(ConfigError, match="2 workers do not fit one GPU"):
        settled(tmp_path, machine(1, total=5 * GIB), "--prefill", "1")


def test_the_context_is_cut_to_what_the_smallest_worker_is_reckoned_to_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = settled(tmp_path, machine(1, total=4 * GIB))
    assert full.config.model.max_model_len == 8192
    card = {"total": 4 * GIB - int((full.workers[0].kv_bytes - 100_000_000) / 0.9)}
    with caplog.at_level(logging.WARNING):
        cut = settled(tmp_path, machine(1, **card))
    length = cut.config.model.max_model_len
    assert length is not None
    assert length == pytest.approx(100_000_000 / (2 * 30 * 3 * 64 * 2), abs=16)
    assert f"the KV cache has room for requests of {length} tokens, not the model's 8192" in caplog.text
    halved = settled(tmp_path, machine(1, **card), "--kv-cache-dtype", "fp8_e4m3")
    assert halved.config.model.max_model_len == pytest.approx(min(8192, 2 * length), abs=16)
    with pytest.raises(ConfigError, match="--max-model-len 8192 does not fit"):
        settled(tmp_path, machine(1, **card), "--max-model-len", "8192")


def test_without_gpus_the_cpu_gets_its_part_of_the_memory(tmp_path: Path) -> None:
    found = settled(tmp_path, NO_GPU)
    for spec in process_specs(found)[1:]:
        config = read(spec)
        assert (config.device.device, config.place.gpu) == ("cpu", None)
        assert config.engine.kv_cache_memory_bytes == 2 * GIB
        assert (config.engine.max_num_seqs, config.engine.max_num_batched_tokens) == (32, 512)
    assert "4 threads each; default: one of each on CPUs" in greeting(found)


def test_workers_get_the_speculation_of_the_flags_with_nothing_left_open(tmp_path: Path) -> None:
    found = settled(tmp_path, machine(2), "--speculative-method", "first-layers", "--num-speculative-tokens", "7")
    router, *workers = process_specs(found)
    assert [read(spec).speculation for spec in workers] == [SpeculationOptions("first-layers", None, 7, 10)] * 2
    assert not any(text.startswith(SPECULATIVE) for text in router.command)


def test_workers_get_the_draft_model_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_model_path().parent)
    found = settled(tmp_path, NO_GPU, "--speculative-model", demo_model_path().name)
    for spec in process_specs(found)[1:]:
        assert read(spec).speculation == SpeculationOptions("draft", str(demo_model_path()), 4, None)


def test_without_speculation_command_lines_are_as_they_were(tmp_path: Path) -> None:
    for flags in ([], ["--speculative-method", "off"]):
        specs = process_specs(settled(tmp_path, NO_GPU, *flags))
        assert not any(text.startswith(SPECULATIVE) for spec in specs for text in spec.command)


def test_ways_for_kv_between_gpus_need_gpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kv-transport cuda_ipc needs workers that compute on GPUs"):
        settled(tmp_path, NO_GPU, "--kv-transport", "cuda_ipc")
    decode = process_specs(settled(tmp_path, machine(2), "--kv-transport", "cuda_ipc"))[2]
    assert read(decode).data.kv_transport == "cuda_ipc"


def encoder_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {"architectures": ["BertModel"], "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6}
    config |= {"intermediate_size": 1536, "num_attention_heads": 12, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    backend = BackendTokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(folder / "tokenizer.json"))
    return folder


def settled_encoder(folder: Path, hardware: Hardware, *arguments: str) -> Settled:
    model = encoder_folder(folder / "encoder")
    command = ["serve", str(model), "--load-format", "dummy", "--port", "0", *arguments]
    return settle(read_config(ServeConfig, make_parser().parse_args(command)), hardware, folder)


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (1, "cuda"), (2, "cuda")])
def test_an_encoder_has_prefill_workers_alone(tmp_path: Path, num_gpus: int, device: str) -> None:
    found = settled_encoder(tmp_path, machine(num_gpus) if num_gpus else NO_GPU)
    specs = process_specs(found)
    assert [spec.name for spec in specs] == ["router", *(f"prefill-{i}" for i in range(max(1, num_gpus)))]
    assert read(specs[1]).model.max_model_len == 256
    assert read(specs[1]).device.device == device
    text = greeting(found)
    assert "prefill + 0 decode workers" in text
    assert "an encoder needs no others" in text
    assert "/v1/embeddings" in text
    assert "chat" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--decode", "1"), "--decode 1: the model is an encoder"),
        (("--prefill", "0"), "--prefill 0: the model is an encoder"),
        (("--speculative-method", "ngram"), "--speculative-method ngram: .* is an encoder"),
        (("--max-model-len", "300"), "--max-model-len 300 is more than the model's 256"),
    ],
)
def test_what_an_encoder_cannot_do_is_told(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settled_encoder(tmp_path, NO_GPU, *arguments)
