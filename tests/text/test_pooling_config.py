"""How a model pools, from its folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from isthmus.text.pooling_config import PoolingConfig, module_configs, read_modules, write_pooling
from isthmus.wire.messages import Pooling

NAMES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}


def make(folder: Path, config: dict[str, Any], *modules: str, pooling: Any = None, home: str = "models") -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if modules:
        entries = [
            {"idx": i, "name": str(i), "path": NAMES[name], "type": f"sentence_transformers.{home}.{name}"}
            for i, name in enumerate(modules)
        ]
        (folder / "modules.json").write_text(json.dumps(entries))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


def switches(**on: bool) -> dict[str, Any]:
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    modes = {f"pooling_mode_{name}": on.get(name, False) for name in names}
    return {"word_embedding_dimension": 384, **modes, "include_prompt": True}


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        (switches(mean_tokens=True), "mean"),
        (switches(cls_token=True), "cls"),
        (switches(lasttoken=True), "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_modules_say_the_kind_and_whether_to_normalise(tmp_path: Path, pooling: dict[str, Any], kind: str) -> None:
    folder = make(tmp_path, {"model_type": "bert"}, "Transformer", "Pooling", "Normalize", pooling=pooling)
    assert PoolingConfig.from_folder(folder) == PoolingConfig(kind, normalize=True)
    assert PoolingConfig.from_folder(folder, "last") == PoolingConfig("last", normalize=True)
    make_plain = make(tmp_path, {}, "Transformer", "Pooling", home="base.modules.pooling")
    assert PoolingConfig.from_folder(make_plain) == PoolingConfig(kind, normalize=False)


@pytest.mark.parametrize(("model_type", "kind"), [("llama", "last"), ("bert", "mean"), ("xlm-roberta", "mean")])
def test_without_modules_the_kind_of_model_says_it(tmp_path: Path, model_type: str, kind: str) -> None:
    folder = make(tmp_path, {"model_type": model_type})
    assert PoolingConfig.from_folder(folder) == PoolingConfig(kind, normalize=True)
    assert PoolingConfig.from_folder(folder, "cls") == PoolingConfig("cls", normalize=True)


@pytest.mark.parametrize("choice", ["auto", "mean"])
def test_other_layers_are_refused_whatever_is_chosen(tmp_path: Path, choice: Any) -> None:
    pooling = switches(mean_tokens=True)
    folder = make(tmp_path, {}, "Transformer", "Pooling", "Dense", "Normalize", pooling=pooling)
    with pytest.raises(ValueError, match="Dense layer"):
        PoolingConfig.from_folder(folder, choice)


@pytest.mark.parametrize(
    ("pooling", "word"),
    [
        (switches(max_tokens=True), "pooling_mode_max_tokens"),
        (switches(mean_tokens=True, cls_token=True), "cls_token and pooling_mode_mean_tokens"),
        (switches(), "nothing"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
    ],
)
def test_other_kinds_are_refused_unless_one_is_chosen(tmp_path: Path, pooling: dict[str, Any], word: str) -> None:
    folder = make(tmp_path, {}, "Transformer", "Pooling", pooling=pooling)
    with pytest.raises(ValueError, match=word):
        PoolingConfig.from_folder(folder)
    assert PoolingConfig.from_folder(folder, "mean") == PoolingConfig("mean", normalize=False)


@pytest.mark.parametrize(
    "raw", ["{}", "[1]", '[{"path": ""}]', '[{"type": "x.Pooling", "path": "../1_Pooling"}]', "\xff", "["]
)
def test_what_is_no_list_of_modules_is_refused(tmp_path: Path, raw: str) -> None:
    (tmp_path / "modules.json").write_bytes(raw.encode("latin1"))
    with pytest.raises(ValueError, match=r"modules\.json"):
        read_modules(tmp_path)


@pytest.mark.parametrize("kind", ["last", "mean", "cls"])
def test_what_is_written_is_read(tmp_path: Path, kind: Pooling) -> None:
    write_pooling(tmp_path, kind)
    assert PoolingConfig.from_folder(tmp_path) == PoolingConfig(kind, normalize=True)


def test_configs_of_modules(tmp_path: Path) -> None:
    folder = make(tmp_path, {}, "Transformer", "Pooling", "Normalize", pooling={})
    assert module_configs(folder) == ["1_Pooling/config.json", "2_Normalize/config.json"]


RERANKER = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}


def test_a_reranker_scores_pairs(tmp_path: Path) -> None:
    folder = make(tmp_path, RERANKER)
    assert PoolingConfig.from_folder(folder) == PoolingConfig("score", normalize=False)
    with pytest.raises(ValueError, match="--pooling mean: the model scores pairs"):
        PoolingConfig.from_folder(folder, "mean")


IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"


@pytest.mark.parametrize(
    ("config", "own", "activation"),
    [
        ({}, {}, "sigmoid"),
        ({"sbert_ce_default_activation_function": IDENTITY}, {}, "identity"),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0"}}, {}, "identity"),
        ({"sentence_transformers": {"version": "4.1.0"}}, {"activation_fn": IDENTITY}, "identity"),
        ({"sbert_ce_default_activation_function": IDENTITY}, {"activation_fn": SIGMOID}, "sigmoid"),
    ],
)
def test_what_a_label_becomes(tmp_path: Path, config: dict[str, Any], own: dict[str, str], activation: str) -> None:
    folder = make(tmp_path, {**RERANKER, **config})
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))
    assert PoolingConfig.from_folder(folder).activation == activation


def test_other_scores_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, {**RERANKER, "sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(ValueError, match=r"scores go through 'torch.*Tanh', which is not supported"):
        PoolingConfig.from_folder(folder)
