"""Vectors and scores of encoders are transformers'."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isthmus.engine.encoder.config import EncoderConfig, is_encoder, read_max_seq_length
from isthmus.engine.encoder.engine import EncoderEngine
from isthmus.engine.encoder.load import load_encoder
from isthmus.engine.plan import Plan, Row
from isthmus.tests.engine.encoder_models import SIZES, VOCAB_SIZE, last_states, make_encoder
from isthmus.wire.messages import Pooling
from safetensors.torch import load_file, save_file

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SEPARATOR = 5
RANDOM = random.Random(3)
PROMPTS = [[RANDOM.randrange(6, VOCAB_SIZE) for _ in range(length)] for length in (7, 1, 30, 7, 66, 30, 7)]


def load(folder: Path, dtype: str = "float32", load_format: str = "auto", device: str = "cpu") -> EncoderEngine:
    config = EncoderConfig.from_hf(json.loads((folder / "config.json").read_text()), read_max_seq_length(folder))
    return load_encoder(
        config,
        folder,
        dtype=dtype,
        load_format=load_format,
        device=device,
        num_blocks=8,
        block_size=16,
        separator_id=SEPARATOR,
    )


def pool(engine: EncoderEngine, prompts: list[list[int]], pooling: Pooling) -> list[np.ndarray]:
    rows = tuple(Row(number, prompt, 0, (0,), pooling=pooling) for number, prompt in enumerate(prompts))
    pooled = engine.launch(Plan(1, rows)).result().pooled
    return [pooled[number] for number in range(len(prompts))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["bert", "bert below a head", "roberta", "xlm-roberta", "bert reranker"])
def test_states_are_transformers(kind: str, device: str, tmp_path: Path) -> None:
    model = make_encoder(kind, tmp_path)
    engine = load(tmp_path, device=device)
    states = [last_states(model, prompt) for prompt in PROMPTS]
    for pooling, expected in (
        ("mean", [its.sum(0) for its in states]),  # schedulers divide
        ("cls", [its[0] for its in states]),
        ("last", [its[-1] for its in states]),
    ):
        for vector, right in zip(pool(engine, PROMPTS, pooling), expected, strict=True):
            assert vector.dtype == np.float32
            np.testing.assert_allclose(vector, right.numpy(), rtol=1e-4, atol=1e-4)


def test_a_prompt_among_others_is_as_alone(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    engine = load(tmp_path)
    for together, prompt in zip(pool(engine, PROMPTS, "mean"), PROMPTS, strict=True):
        np.testing.assert_allclose(together, pool(engine, [prompt], "mean")[0], rtol=1e-4, atol=1e-4)


def pair(first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
    """Ids and types."""
    return [*first, SEPARATOR, *second, SEPARATOR], [0] * (len(first) + 1) + [1] * (len(second) + 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["bert reranker", "roberta reranker"])
def test_scores_are_transformers(kind: str, device: str, tmp_path: Path) -> None:
    model = make_encoder(kind, tmp_path)
    pairs = [pair(PROMPTS[0], PROMPTS[2]), pair(PROMPTS[5], PROMPTS[1]), pair(PROMPTS[1], PROMPTS[6])]
    scores = pool(load(tmp_path, device=device), [ids for ids, _ in pairs], "score")
    for score, (ids, types) in zip(scores, pairs, strict=True):
        given = types if kind == "bert reranker" else [0] * len(ids)
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([given])).logits[0]
        np.testing.assert_allclose(score, logits.numpy(), rtol=1e-4, atol=1e-4)


def test_the_second_text_of_a_pair_is_told_apart(tmp_path: Path) -> None:
    model = make_encoder("bert reranker", tmp_path)
    ids, _ = pair(PROMPTS[0], PROMPTS[2])
    with torch.inference_mode():
        untold = model(torch.tensor([ids])).logits[0].numpy()
    assert abs(pool(load(tmp_path), [ids], "score")[0] - untold) > 1e-3


def test_bfloat16_is_near(tmp_path: Path) -> None:
    model = make_encoder("bert", tmp_path)
    for vector, prompt in zip(pool(load(tmp_path, "bfloat16"), PROMPTS, "cls"), PROMPTS, strict=True):
        right = last_states(model, prompt)[0].numpy()
        assert vector @ right > 0.99 * np.linalg.norm(vector) * np.linalg.norm(right)


def test_old_names_of_norms(tmp_path: Path) -> None:
    model = make_encoder("bert", tmp_path)
    path = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(path).items()
    }
    save_file({**old, "embeddings.position_ids": torch.arange(70)[None]}, path)
    np.testing.assert_allclose(
        pool(load(tmp_path), PROMPTS[:1], "cls")[0], last_states(model, PROMPTS[0])[0].numpy(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("encoder.layer.1.output.dense.bias"), r"missing: encoder\.layer\.1\.output"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "left over: more"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    make_encoder("bert", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_random_weights_need_no_file(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    vectors = pool(load(tmp_path, load_format="dummy"), PROMPTS, "mean")
    assert all(np.isfinite(vector).all() and vector.any() for vector in vectors)


BERT = {"architectures": ["BertModel"], **SIZES, "type_vocab_size": 2}
ROBERTA = {**BERT, "architectures": ["RobertaModel"], "pad_token_id": 1}


def test_sizes() -> None:
    assert is_encoder(BERT)
    assert not is_encoder({"architectures": ["LlamaForCausalLM"]})
    assert not is_encoder({})
    assert EncoderConfig.from_hf(BERT).max_position_embeddings == 70
    assert EncoderConfig.from_hf(BERT, 40).max_position_embeddings == 40
    assert EncoderConfig.from_hf(BERT, 400).max_position_embeddings == 70
    assert EncoderConfig.from_hf(ROBERTA).max_position_embeddings == 68
    assert EncoderConfig.from_hf(BERT).layout("float32") == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**BERT, "hidden_act": "silu"}, "'silu' is not supported"),
        ({**BERT, "position_embedding_type": "relative_key"}, "'relative_key' are not supported"),
        ({**BERT, "hidden_size": 33}, "4 attention heads"),
        ({**BERT, "vocab_size": None}, "vocab_size is None"),
        ({**BERT, "quantization_config": {"bits": 4}}, "quantized"),
        ({**BERT, "architectures": ["BertForSequenceClassification"]}, "classifier with 2 labels"),
    ],
)
def test_what_is_not_supported_is_told(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_hf(config)


@pytest.mark.parametrize("value", [0, "long", -4])
def test_a_broken_length_is_told(tmp_path: Path, value: Any) -> None:
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": value}))
    with pytest.raises(ValueError, match="max_seq_length"):
        read_max_seq_length(tmp_path)


def test_parts_of_prompts_are_no_work_for_it(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    with pytest.raises(AssertionError, match="whole prompts"):
        load(tmp_path).launch(Plan(1, (Row(0, [7, 8], 3, (0,), pooling="mean"),)))
