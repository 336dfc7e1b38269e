from dataclasses import replace
from pathlib import Path

import pytest
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.launch.config import ModelOptions
from isthmus.launch.model import Model, find_model
from isthmus.launch.resolve import ConfigError
from isthmus.launch.speculative_model import find_draft, settle_speculation, with_draft
from isthmus.tests.helpers import demo_model_path

DEMO = str(demo_model_path())


@pytest.fixture(scope="module")
def demo() -> Model:
    return find_model(ModelOptions(DEMO, load_format="dummy"))


def test_a_draft_model_is_found_and_named_by_its_path(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_model_path().parent)
    asked = SpeculationConfig("draft", 3, demo_model_path().name)
    assert settle_speculation(asked, demo) == SpeculationConfig("draft", 3, DEMO)
    draft = find_draft(asked, demo)
    assert (draft.config, draft.load_format) == (demo.config, "dummy")


def test_a_draft_model_with_another_tokenizer_is_refused(demo: Model) -> None:
    other = replace(demo, resolved=replace(demo.resolved, source="big", tokenizer_digest="another"))
    with pytest.raises(ConfigError, match=r"--speculative-model .* has another tokenizer than big"):
        settle_speculation(SpeculationConfig("draft", model=DEMO), other)


@pytest.mark.parametrize("method", ["draft", "eagle"])
def test_a_model_that_is_not_there_is_named_with_its_flag(demo: Model, method: str) -> None:
    with pytest.raises(ConfigError, match=r"--speculative-model: there is no model at 'no/such/model.gguf'"):
        settle_speculation(SpeculationConfig(method, model="no/such/model.gguf"), demo)


def test_a_head_is_a_folder_without_a_tokenizer(demo: Model, tmp_path: Path) -> None:
    asked = SpeculationConfig("eagle", 5, str(tmp_path))
    with pytest.raises(ConfigError, match=r"is no EAGLE head: it has no config\.json"):
        settle_speculation(asked, demo)
    (tmp_path / "config.json").write_text("{}")
    assert settle_speculation(asked, demo) == asked
    with pytest.raises(ConfigError, match="is no EAGLE head"):
        settle_speculation(SpeculationConfig("eagle", model=DEMO), demo)  # a .gguf file


def test_what_needs_no_model_has_its_layers_decided(demo: Model) -> None:
    assert settle_speculation(SpeculationConfig("first-layers"), demo) == SpeculationConfig(
        "first-layers", num_layers=10
    )
    assert settle_speculation(SpeculationConfig("ngram"), demo) == SpeculationConfig("ngram")
    assert settle_speculation(SpeculationConfig(), demo) == SpeculationConfig()


def test_a_draft_model_takes_memory_beside_its_model(demo: Model) -> None:
    both = with_draft(demo, SpeculationConfig("draft", model=DEMO))
    for dtype in ("float32", "bfloat16"):
        assert both.facts(dtype).kv_bytes_per_token == 2 * demo.facts(dtype).kv_bytes_per_token
        assert both.footprint(dtype).weight_bytes == 2 * demo.footprint(dtype).weight_bytes
    assert with_draft(demo, SpeculationConfig("ngram")) == demo
