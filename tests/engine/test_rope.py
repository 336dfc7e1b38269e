"""Frequencies and scale against transformers' functions."""

from typing import Any

import pytest
import torch
from isthmus.engine.config import ModelConfig, RopeConfig
from isthmus.engine.rope import Rope, inverse_frequencies, rotate_
from isthmus.tests.engine import tiny
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

HEAD_DIM = 32
KINDS: dict[str, dict[str, Any]] = {
    "linear": tiny.LINEAR,
    "llama3": tiny.LLAMA3,
    "yarn": tiny.YARN,
    "yarn, attention factor": {**tiny.YARN, "attention_factor": 0.7},
    "yarn, betas": {**tiny.YARN, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "yarn, mscale": {**tiny.YARN, "mscale": 0.9, "mscale_all_dim": 0.6},
    "yarn, long": {**tiny.YARN, "factor": 40.0, "original_max_position_embeddings": 4096},
    "yarn, original length from the config": {"rope_type": "yarn", "factor": 2.0},
}


def both(scaling: dict[str, Any]) -> tuple[RopeConfig, LlamaConfig]:
    config = tiny.llama(head_dim=HEAD_DIM, rope_scaling=scaling, rope_theta=50_000.0)
    hf_config = LlamaConfig(**{k: v for k, v in config.items() if k not in ("architectures", "model_type")})
    return ModelConfig.from_hf(config).rope, hf_config


@pytest.mark.parametrize("name", KINDS)
def test_scaled_frequencies(name: str) -> None:
    ours, hf_config = both(dict(KINDS[name]))
    frequencies, scale = inverse_frequencies(ours, HEAD_DIM)
    expected, expected_scale = ROPE_INIT_FUNCTIONS[ours.kind](hf_config, torch.device("cpu"))
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    assert scale == pytest.approx(expected_scale, rel=1e-9)


def test_rotation() -> None:
    config = tiny.llama(head_dim=HEAD_DIM)
    hf_config = LlamaConfig(**{k: v for k, v in config.items() if k not in ("architectures", "model_type")})
    positions = torch.tensor([0, 1, 77, 255])
    queries, keys = torch.randn(4, 3, HEAD_DIM), torch.randn(4, 2, HEAD_DIM)
    cos, sin = LlamaRotaryEmbedding(hf_config)(queries, positions[None])
    expected = apply_rotary_pos_emb(queries[None].transpose(1, 2), keys[None].transpose(1, 2), cos, sin)
    heads = torch.cat((queries, keys), 1)
    rotate_(heads, *Rope(ModelConfig.from_hf(config).rope, HEAD_DIM, torch.float32).at(positions))
    torch.testing.assert_close(heads, torch.cat([part[0].transpose(0, 1) for part in expected], 1))


def test_factors_divide_the_frequencies() -> None:
    factors = torch.linspace(1, 8, HEAD_DIM // 2)
    config = RopeConfig("default", 10_000.0)
    plain, divided = Rope(config, HEAD_DIM, torch.float32), Rope(config, HEAD_DIM, torch.float32, factors)
    torch.testing.assert_close(divided.frequencies * factors, plain.frequencies)


def test_equal_settings_have_equal_text() -> None:
    given = tiny.llama(rope_scaling=dict(reversed(tiny.LLAMA3.items())))
    assert repr(ModelConfig.from_hf(given).rope) == repr(ModelConfig.from_hf(tiny.llama(rope_scaling=tiny.LLAMA3)).rope)
    assert repr(ModelConfig.from_hf(given).rope) != repr(ModelConfig.from_hf(tiny.llama()).rope)
