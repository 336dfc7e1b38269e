"""Reading config.json in both spellings, and refusing what is not supported."""

import subprocess
import sys
from typing import Any

import pytest
from isthmus.engine.config import ModelConfig
from isthmus.tests.engine import tiny
from transformers import AutoConfig


@pytest.mark.parametrize("config", [tiny.llama(rope_scaling=tiny.YARN), tiny.mistral(), tiny.qwen2(), tiny.qwen3()])
def test_both_spellings_are_the_same(config: dict[str, Any]) -> None:
    new = AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"}).to_dict()
    assert "rope_parameters" in new
    assert ModelConfig.from_hf({**new, "architectures": config["architectures"]}) == ModelConfig.from_hf(config)


def test_old_name_of_the_rope_type() -> None:
    old = tiny.llama(rope_scaling={"type": "linear", "factor": 2.5})
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(tiny.llama(rope_scaling=tiny.LINEAR))


def test_defaults() -> None:
    config = tiny.llama()
    del config["num_key_value_heads"], config["rope_theta"]
    made = ModelConfig.from_hf(config)
    assert (made.num_kv_heads, made.head_dim, made.rope.theta) == (4, 16, 10_000.0)
    assert made.windows == (None, None)
    assert not made.tie_embeddings


def test_biases_of_the_families() -> None:
    def biases(config: dict[str, Any]) -> tuple[bool, bool, bool]:
        made = ModelConfig.from_hf(config)
        return made.qkv_bias, made.o_bias, made.mlp_bias

    asked = {"attention_bias": True, "mlp_bias": True}
    assert biases(tiny.llama()) == (False, False, False)
    assert biases(tiny.llama(**asked)) == (True, True, True)
    assert biases(tiny.mistral(**asked)) == (False, False, False)
    assert biases(tiny.qwen2()) == (True, False, False)
    assert biases(tiny.qwen3(attention_bias=True)) == (True, True, False)


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (tiny.llama(sliding_window=8), (None, None)),
        (tiny.mistral(), (8, 8)),
        (tiny.mistral(layer_types=["full_attention", "sliding_attention"]), (None, 8)),
        (tiny.qwen2(sliding_window=8), (None, None)),
        (tiny.qwen2(sliding_window=8, use_sliding_window=True, max_window_layers=1), (None, 8)),
        (tiny.qwen2(sliding_window=8, use_sliding_window=True, max_window_layers=2), (None, None)),
        (
            tiny.qwen3(sliding_window=8, use_sliding_window=True, layer_types=["sliding_attention", "full_attention"]),
            (8, None),
        ),
    ],
)
def test_windows(config: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert ModelConfig.from_hf(config).windows == windows


def test_layout_groups_layers_by_window() -> None:
    config = tiny.qwen2(num_hidden_layers=3, sliding_window=8, use_sliding_window=True, max_window_layers=2)
    shape = {"num_kv_heads": 2, "head_dim": 16, "dtype": "bfloat16"}
    assert ModelConfig.from_hf(config).layout("bfloat16") == [
        {"layer_ids": (0, 1), **shape, "window_tokens": None},
        {"layer_ids": (2,), **shape, "window_tokens": 8},
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architecture 'MambaForCausalLM' is not supported"),
        ({"architectures": []}, "architecture none is not supported"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'llama3' needs low_freq_factor, high_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "a part of the head dimension"),
        ({"hidden_act": "gelu"}, "the activation 'gelu' is not supported"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 KV heads"),
        ({"head_dim": 15}, "the head dimension is 15"),
        ({"vocab_size": None}, "no vocab_size"),
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized checkpoints \(gptq\)"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(tiny.llama(**changes))


def test_layer_types_must_be_known() -> None:
    with pytest.raises(ValueError, match="layer_types"):
        ModelConfig.from_hf(tiny.mistral(layer_types=["chunked_attention", "full_attention"]))


def test_loads_no_torch() -> None:
    code = "import sys, isthmus.engine.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
