"""What config.json of a head says, and which checkpoints are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from isthmus.engine.config import ModelConfig
from isthmus.engine.eagle.config import EagleConfig
from isthmus.engine.eagle.load import load_eagle
from isthmus.engine.eagle.weights import canonical_name
from isthmus.engine.models.llama import Llama
from isthmus.engine.parts import CpuParts
from isthmus.tests.engine import tiny
from isthmus.tests.engine.eagle_reference import LAYER, OWN, SPECULATORS_3, VOCAB_SIZE, checkpoints
from safetensors.torch import save_file
from torch import Tensor

TARGET = ModelConfig.from_hf(tiny.llama(num_hidden_layers=8))
EAGLE3 = {**OWN, "draft_vocab_size": 200}
IDS = "eagle_aux_hidden_state_layer_ids"


def read(config: dict[str, Any], target: ModelConfig = TARGET) -> EagleConfig:
    return EagleConfig.from_hf(config, target)


@pytest.fixture(scope="module")
def target() -> Llama:
    return tiny.tiny_model(tiny.llama(num_hidden_layers=8), None, "dummy")


def load(folder: Path, target: Llama) -> None:
    load_eagle(folder, target, CpuParts(), torch.float32)


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (OWN, 1),
        ({**OWN, "architectures": ["EagleLlamaForCausalLM"]}, 1),
        ({"model_type": "eagle", "model": LAYER}, 1),
        ({"speculators_model_type": "eagle", "transformer_layer_config": LAYER}, 1),
        (EAGLE3, 3),
        ({**OWN, "architectures": ["LlamaForCausalLMEagle3"]}, 3),
        ({**OWN, "target_hidden_size": 64}, 3),
        (SPECULATORS_3, 3),
    ],
)
def test_version(config: dict[str, Any], version: int) -> None:
    made = read(config)
    assert made.version == version
    assert made.layer.num_layers == 1
    assert made.draft_vocab_size == config.get("draft_vocab_size", VOCAB_SIZE)
    assert made.feature_size == (64 if version == 1 else 192)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (2, 4, 5)),
        ({IDS: [1, 3, 8]}, (1, 3, 8)),
        ({"eagle_config": {IDS: [1, 3, 7]}}, (2, 4, 8)),
        ({"eagle_config": {IDS: [], "use_aux_hidden_state": True}}, (2, 4, 5)),
        ({IDS: [0, 2, 4, 6]}, (0, 2, 4, 6)),
    ],
)
def test_aux_layers(fields: dict[str, Any], expected: tuple[int, ...]) -> None:
    made = read({**EAGLE3, **fields})
    assert made.aux_layers == expected
    assert made.feature_size == 64 * len(expected)


def test_layer_sizes() -> None:
    made = read({**EAGLE3, "rope_theta": 5e5})
    assert (made.layer.num_heads, made.layer.num_kv_heads, made.layer.head_dim) == (4, 2, 16)
    assert made.layer.rope.theta == 5e5
    assert made.layer.max_position_embeddings == TARGET.max_position_embeddings, "not the 64 it was trained on"
    assert made.layer.windows == (None,)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({**EAGLE3, IDS: [3, 1, 5]}, r"streams \(3, 1, 5\) are not ascending"),
        ({**EAGLE3, IDS: [1, 3, 9]}, "of a target of 8 layers"),
        ({**EAGLE3, "vocab_size": 300}, "has 300 tokens, the target 320"),
        ({**EAGLE3, "draft_vocab_size": 321}, "draft_vocab_size is 321"),
        ({**EAGLE3, "target_hidden_size": 96}, "hidden states of 96, the target's are 64"),
        ({**OWN, "hidden_size": 96}, "hidden states of 96, the target's are 64"),
        ({**OWN, "num_hidden_layers": 2}, "has 2 layers"),
        ({**OWN, "model_type": "llama4_text"}, "'llama4_text' are not supported"),
        ({**EAGLE3, "fc_norm": True}, "fc_norm = True"),
        ({**EAGLE3, "norm_output": True}, "norm_output = True"),
        ({**OWN, "add_para_norm": True}, "add_para_norm = True"),
        ({**EAGLE3, "logit_scale": 0.5}, "logit_scale = 0.5"),
        ({**EAGLE3, "eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state = False"),
        ({**SPECULATORS_3, "speculators_model_type": "dflash"}, "'dflash' are not supported"),
    ],
)
def test_refused_configurations(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(config)


def test_default_streams_need_a_target_of_seven_layers() -> None:
    for num_layers in (2, 6):
        with pytest.raises(ValueError, match=IDS):
            read(EAGLE3, replace(TARGET, num_layers=num_layers))
    assert read(EAGLE3, replace(TARGET, num_layers=7)).aux_layers == (2, 3, 4)


def test_names() -> None:
    assert canonical_name("midlayer.hidden_norm.weight") == "layers.0.hidden_norm.weight"
    assert canonical_name("model.midlayer.mlp.up_proj.weight") == "layers.0.mlp.up_proj.weight"
    assert canonical_name("fusion_fc.bias") == "fc.bias"
    assert canonical_name("lm_head.weight") == "lm_head.weight"


Tensors = dict[str, Tensor]


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("eagle3", drop("midlayer.hidden_norm.weight"), "missing: layers.0.hidden_norm.weight"),
        ("eagle3", drop("d2t"), "missing: d2t"),
        ("eagle3", drop("lm_head.weight"), "missing: lm_head.weight"),
        ("eagle3", drop("fc.weight"), "missing: fc.weight"),
        ("eagle3", put("midlayer.fc2.weight", 4), "left over: layers.0.fc2.weight"),
        ("eagle3", put("layers.1.mlp.up_proj.weight", 96, 64), "left over: layers.1.mlp.up_proj.weight"),
        ("eagle3", put("fc.weight", 64, 128), r"fc.weight is \(64, 128\), not \(64, 192\)"),
        ("eagle3", put("layers.0.hidden_norm.weight", 64), "layers.0.hidden_norm.weight under two names"),
        ("eagle3, narrower, norm before fc", drop("embed_tokens.weight"), "missing: embed_tokens.weight"),
        ("eagle3, narrower, norm before fc", drop("input_norm.weight"), "missing: input_norm.weight"),
        ("eagle of speculators", drop("fusion_fc.bias"), "missing: fc.bias"),
        ("eagle", drop("layers.0.self_attn.k_proj.weight"), "missing: layers.0.self_attn.k_proj.weight"),
        ("eagle", put("layers.0.input_layernorm.weight", 64), "left over: layers.0.input_layernorm.weight"),
        ("eagle", put("norm.weight", 64), "left over: norm.weight"),
    ],
)
def test_refused_tensors(
    name: str, change: Callable[[Tensors], object], sentence: str, target: Llama, tmp_path: Path
) -> None:
    checkpoint = checkpoints()[name]
    change(checkpoint.tensors)
    with pytest.raises(ValueError, match=sentence):
        load(checkpoint.save(tmp_path), target)


@pytest.mark.parametrize("offset", [-1, VOCAB_SIZE])
def test_draft_tokens_lead_into_the_vocabulary(offset: int, target: Llama, tmp_path: Path) -> None:
    checkpoint = checkpoints()["eagle3"]
    checkpoint.tensors["d2t"][0] = offset
    with pytest.raises(ValueError, match="d2t does not lead to distinct tokens"):
        load(checkpoint.save(tmp_path), target)


def test_draft_tokens_are_distinct(target: Llama, tmp_path: Path) -> None:
    checkpoint = checkpoints()["eagle3"]
    checkpoint.tensors["d2t"][1] = checkpoint.tensors["d2t"][0] - 1
    with pytest.raises(ValueError, match="d2t does not lead to distinct tokens"):
        load(checkpoint.save(tmp_path), target)


@pytest.mark.parametrize("name", ["eagle", "eagle3, the target's output layer"])
def test_the_target_s_output_layer_must_be_given(name: str, target: Llama, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give target_weights"):
        load(checkpoints()[name].save(tmp_path), target)


def test_integer_weights_are_refused(target: Llama, tmp_path: Path) -> None:
    checkpoint = checkpoints()["eagle3"]
    checkpoint.tensors["fc.weight"] = checkpoint.tensors["fc.weight"].to(torch.int8)
    with pytest.raises(ValueError, match=r"fc\.weight is stored as torch\.int8"):
        load(checkpoint.save(tmp_path), target)


def bare(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(EAGLE3))
    return folder


def test_nothing_to_read(target: Llama, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load(tmp_path, target)
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load(bare(tmp_path), target)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(EagleConfig, "holds more than tensors"), ({"fc.weight": 1.0}, "is not a table of tensors")],
    ids=["class", "number"],
)
def test_pickles_of_anything_else_are_refused(content: object, sentence: str, target: Llama, tmp_path: Path) -> None:
    torch.save(content, bare(tmp_path) / "pytorch_model.bin")
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path, target)


def test_all_layouts_are_complete(target: Llama, tmp_path: Path) -> None:
    """The checkpoints that the refused ones are made from are read, where the target's output layer is not needed."""
    for number, (name, checkpoint) in enumerate(checkpoints().items()):
        if checkpoint.version == 3 and "output layer" not in name:
            load(checkpoint.save(tmp_path / str(number)), target)


def test_sharded(target: Llama, tmp_path: Path) -> None:
    tensors = list(checkpoints()["eagle3"].tensors.items())
    bare(tmp_path)
    save_file(dict(tensors[:5]), tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match="missing"):
        load(tmp_path, target)
    save_file(dict(tensors[5:]), tmp_path / "model-00002-of-00002.safetensors")
    load(tmp_path, target)
