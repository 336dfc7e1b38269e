"""Strictness about what a checkpoint holds, and the ways it may be split."""

from pathlib import Path

import pytest
import torch
from isthmus.engine.config import ModelConfig
from isthmus.engine.models.llama import Llama
from isthmus.engine.weights import DummyWeights, SafetensorsFolder, Weights, check_shapes
from isthmus.tests.engine import tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG = tiny.llama()
EXPECTED = Llama.weight_shapes(ModelConfig.from_hf(CONFIG))


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, Tensor]:
    return load_file(tiny.save(tiny.reference_model(CONFIG), tmp_path / "saved") / "model.safetensors")


def load(folder: Path, tensors: dict[str, Tensor], **config: object) -> None:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    tiny.tiny_model({**CONFIG, **config}, folder)


def test_missing(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"do not fit.*missing: model.layers.1.mlp.up_proj.weight$"):
        load(tmp_path, tensors)


def test_left_over(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    with pytest.raises(ValueError, match=r"left over: model.layers.0.self_attn.q_proj.bias$"):
        load(tmp_path, tensors)


def test_wrong_shape(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(65)
    with pytest.raises(ValueError, match=r"wrong shape: model.norm.weight is \(65,\), not \(64,\)$"):
        load(tmp_path, tensors)


def test_wrong_dtype(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"model.norm.weight is stored as torch.int8"):
        load(tmp_path, tensors)


def test_more_layers_than_configured_are_left_over(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"left over: .*layers\.1\..* and 4 more$"):
        load(tmp_path, tensors, num_hidden_layers=1)


def test_what_checkpoints_carry_in_vain(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """Rotary buffers of old checkpoints, and the output layer of a model that ties it to the embedding."""
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    load(tmp_path, tensors, tie_word_embeddings=True)
    del tensors["lm_head.weight"]
    load(tmp_path, tensors, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"missing: lm_head.weight$"):
        load(tmp_path, tensors)


def test_all_problems_at_once() -> None:
    with pytest.raises(ValueError, match=r"missing: a; left over: b; wrong shape: c is \(1,\), not \(2,\)"):
        check_shapes({"a": (1,), "c": (2,)}, {"b": (1,), "c": (1,)})


def test_shards(tmp_path: Path) -> None:
    reference = tiny.reference_model(CONFIG)
    tiny.save(reference, tmp_path, max_shard_size="60KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    engine = tiny.engine_of(CONFIG, tmp_path)
    expected = tiny.reference_logits(reference, [1, 2, 3])[-1]
    torch.testing.assert_close(tiny.prefill(engine, [1, 2, 3], [0], 3), expected, rtol=1e-4, atol=1e-4)
    files[1].unlink()
    with pytest.raises(ValueError, match=f"lacks {files[1].name}"):
        tiny.engine_of(CONFIG, tmp_path)


def test_half_precision_checkpoint(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    weights = Weights(SafetensorsFolder(tmp_path), EXPECTED, torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights.take(name), tensors[name].half().float())


def test_joined_weights_keep_their_order(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    joined = Weights(SafetensorsFolder(tmp_path), EXPECTED, torch.float32).take(*names)
    assert torch.equal(joined, torch.cat([tensors[name] for name in names]))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        SafetensorsFolder(tmp_path)


def test_dummy_weights_are_the_same_for_everyone() -> None:
    first, second = DummyWeights(EXPECTED), DummyWeights(EXPECTED)
    name, other = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(first.load(name), second.load(name))
    assert not torch.equal(first.load(name), first.load(other))
    assert first.load(name).std() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(first.load("model.norm.weight"), torch.ones(64))
