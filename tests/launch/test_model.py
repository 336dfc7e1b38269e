import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from isthmus.launch.config import ModelOptions
from isthmus.launch.model import Model, find_model, served_names
from isthmus.launch.resolve import ConfigError, ModelFacts
from isthmus.tests.helpers import demo_model_path


@pytest.fixture(scope="module")
def demo() -> Model:
    return find_model(ModelOptions(str(demo_model_path())))


def test_sizes_of_the_demo_model(demo: Model) -> None:
    assert demo.facts("float32") == ModelFacts(8192, 2 * 30 * 3 * 64 * 4)
    assert demo.facts("auto") == demo.facts("float32")
    assert demo.facts("bfloat16") == ModelFacts(8192, 2 * 30 * 3 * 64 * 2)


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
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    shutil.copy(demo.resolved.folder / "tokenizer.json", tmp_path)
    with pytest.raises(ConfigError, match="'BertModel' is not supported"):
        find_model(ModelOptions(str(tmp_path), load_format="dummy"))


@pytest.mark.parametrize(
    ("model", "name"),
    [(None, "SmolLM2-135M-Instruct"), ("a/b", "a/b"), ("x/y/model.Q4.gguf", "model.Q4"), ("FOLDER", "FOLDER")],
)
def test_names_that_clients_see(model: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)
    assert served_names(model) == (name,)
