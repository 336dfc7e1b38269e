import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from isthmus.launch.config import ModelOptions
from isthmus.launch.model import Model, find_model, num_parameters, served_names
from isthmus.launch.resolve import ConfigError, ModelFacts
from isthmus.tests.helpers import demo_model_path


@pytest.fixture(scope="module")
def demo() -> Model:
    return find_model(ModelOptions(str(demo_model_path())))


def test_sizes_of_the_demo_model(demo: Model) -> None:
    assert demo.facts("float32") == ModelFacts(8192, 2 * 30 * 3 * 64 * 4)
    assert demo.facts("auto") == demo.facts("float32")
    assert demo.facts("bfloat16") == ModelFacts(8192, 2 * 30 * 3 * 64 * 2)


@pytest.mark.parametrize(
    ("dtype", "kv_cache_dtype", "device", "kv_bytes", "weight_bytes"),
    [
        ("auto", "auto", "cuda", 2, 2),
        ("auto", "auto", "cpu", 4, 4),
        ("float16", "fp8_e5m2", "cuda", 1, 2),
        ("float32", "fp8_e4m3", "cuda", 1, 4),
        ("float32", "auto", "cuda", 4, 4),
    ],
)
def test_its_needs_go_by_device_and_types(
    demo: Model, dtype: str, kv_cache_dtype: str, device: str, kv_bytes: int, weight_bytes: int
) -> None:
    facts, footprint = demo.needs(dtype, kv_cache_dtype, device)
    assert facts == ModelFacts(8192, 2 * 30 * 3 * 64 * kv_bytes)
    assert footprint.weight_bytes == pytest.approx(134_515_008 * weight_bytes, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "wanted", "expected"),
    [
        ({}, "auto", "bfloat16"),
        ({"dtype": "float16"}, "auto", "float16"),
        ({"torch_dtype": "float16"}, "auto", "float16"),
        ({"torch_dtype": "torch.bfloat16"}, "auto", "bfloat16"),
        ({"dtype": "float32"}, "auto", "bfloat16"),
        ({"dtype": "float16"}, "float32", "float32"),
    ],
)
def test_on_a_gpu_the_type_is_the_checkpoint_s(
    demo: Model, monkeypatch: pytest.MonkeyPatch, config: dict[str, str], wanted: str, expected: str
) -> None:
    monkeypatch.setattr("isthmus.text.resolve.ResolvedModel.config", lambda self: config)
    assert demo.gpu_dtype(wanted) == expected


def test_weights_are_counted_as_they_are(demo: Model) -> None:
    llama = pytest.importorskip("isthmus.engine.models.llama")
    for tied in (True, False):
        config = replace(demo.config, tie_embeddings=tied)
        shapes = llama.Llama.weight_shapes(config).values()
        assert num_parameters(config) == pytest.approx(sum(math.prod(shape) for shape in shapes), rel=1e-3)


def test_its_fingerprint_tells_apart_what_must_not_mix(demo: Model) -> None:
    prints = {
        demo.fingerprint(16, "float32", "torch"),
        demo.fingerprint(32, "float32", "torch"),
        demo.fingerprint(16, "bfloat16", "torch"),
        demo.fingerprint(16, "float32", "fake"),
    }
    assert len(prints) == 4
    again = find_model(ModelOptions(str(demo_model_path())))
    assert again.fingerprint(16, "float32", "torch") == demo.fingerprint(16, "float32", "torch")


def test_a_path_reaches_workers_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.gguf").symlink_to(demo_model_path())
    monkeypatch.chdir(tmp_path)
    assert find_model(ModelOptions("link.gguf")).name_for_workers == str(tmp_path / "link.gguf")


def test_a_hub_id_reaches_workers_as_such(demo: Model) -> None:
    resolved = replace(demo.resolved, source="owner/name")
    assert Model(resolved, demo.config, "auto").name_for_workers == "owner/name"


def test_what_is_no_model_is_a_config_error(demo: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no model at"):
        find_model(ModelOptions(str(tmp_path / "none.gguf")))
    (tmp_path / "config.json").write_text('{"architectures": ["T5Model"]}')
    shutil.copy(demo.resolved.folder / "tokenizer.json", tmp_path)
    with pytest.raises(ConfigError, match="'T5Model' is not supported"):
        find_model(ModelOptions(str(tmp_path), load_format="dummy"))


@pytest.mark.parametrize(
    ("model", "name"),
    [(None, "SmolLM2-135M-Instruct"), ("a/b", "a/b"), ("x/y/model.Q4.gguf", "model.Q4"), ("FOLDER", "FOLDER")],
)
def test_names_that_clients_see(model: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)
    assert served_names(model) == (name,)
