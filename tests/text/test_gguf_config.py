"""GGUF's model keys in Hugging Face's names."""

from typing import Any

import pytest
from isthmus.tests.text.vocabularies import make_header, model_metadata
from isthmus.text.gguf_config import gguf_config, gguf_pooling
from isthmus.text.gguf_metadata import GgufHeader


def config_of(arch: str = "llama", *tensors: str, **keys: Any) -> dict[str, Any]:
    return gguf_config(make_header(model_metadata(arch, **keys), *tensors))


def test_demo_model(demo_header: GgufHeader) -> None:
    config = gguf_config(demo_header)
    assert config.pop("rms_norm_eps") == pytest.approx(1e-5, rel=1e-6)
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize(
    ("arch", "architecture"), [("llama", "Llama"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3")], ids=lambda value: value
)
def test_architectures(arch: str, architecture: str) -> None:
    config = config_of(arch)
    assert (config["architectures"], config["model_type"]) == ([f"{architecture}ForCausalLM"], arch)


def test_tensors_tell_ties_and_biases() -> None:
    plain, full = config_of(), config_of("llama", "output.weight", "blk.0.attn_q.bias", "blk.0.ffn_down.bias")
    names = ("tie_word_embeddings", "attention_bias", "mlp_bias")
    assert [plain[name] for name in names] == [True, False, False]
    assert [full[name] for name in names] == [False, True, True]


@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ({}, "head_dim", 16),
        ({"attention__key_length": 32, "attention__value_length": 32, "rope__dimension_count": 32}, "head_dim", 32),
        ({"attention__head_count_kv": None}, "num_key_value_heads", 4),
        ({"attention__head_count_kv": [2, 2]}, "num_key_value_heads", 2),
        ({}, "rope_theta", 10_000.0),
        ({"rope__freq_base": 5e5}, "rope_theta", 5e5),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, "rope_scaling", None),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 1.0}, "rope_scaling", None),
        ({"rope__scale_linear": 2.0}, "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            "rope_scaling",
            {"rope_type": "linear", "factor": 4.0},
        ),
    ],
)
def test_values_and_defaults(keys: dict[str, Any], field: str, value: Any) -> None:
    assert config_of(**keys)[field] == value


YARN: dict[str, Any] = {
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 128,
}


def test_yarn() -> None:
    expected = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    assert config_of("llama", **YARN)["rope_scaling"] == expected
    scaled = config_of("llama", **YARN, rope__scaling__attn_factor=0.5)["rope_scaling"]
    assert scaled.pop("attention_factor") == pytest.approx(0.5 * 1.138629436)
    assert scaled == expected


def test_sliding_window() -> None:
    mistral = config_of("llama", attention__sliding_window=64)
    assert (mistral["model_type"], mistral["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert mistral["sliding_window"] == 64
    qwen = config_of("qwen2", attention__sliding_window=64)
    assert (qwen["use_sliding_window"], qwen["sliding_window"], qwen["max_window_layers"]) == (True, 64, 0)
    assert "sliding_window" not in config_of()


@pytest.mark.parametrize(("number", "kind"), [(None, None), (0, None), (1, "mean"), (2, "cls"), (3, "last")])
def test_pooling(number: int | None, kind: str | None) -> None:
    header = make_header(model_metadata("qwen3", **({} if number is None else {"pooling_type": number})))
    assert gguf_pooling(header) == kind


def test_rerankers_are_refused() -> None:
    with pytest.raises(ValueError, match="pooling type 4"):
        gguf_pooling(make_header(model_metadata("qwen3", pooling_type=4)))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"expert_count": 8}, "experts"),
        ({"embedding_length": None}, r"no llama\.embedding_length"),
        ({"attention__head_count_kv": [2, 4]}, "differs between layers"),
        ({"rope__dimension_count": 8}, r"rope\.dimension_count is 8, the key length 16"),
        ({"attention__value_length": 8}, r"value_length is 8"),
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 4.0}, "'longrope'"),
        ({"rope__scaling__type": "yarn"}, r"no llama\.rope\.scaling\.factor"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0}, "original_context_length"),
    ],
)
def test_what_is_not_supported_is_named(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config_of(**keys)


def test_other_architecture_split_file_and_missing_embedding() -> None:
    with pytest.raises(ValueError, match="architecture 'gemma3' is not supported"):
        gguf_config(make_header({"general.architecture": "gemma3"}))
    with pytest.raises(ValueError, match="one part of several"):
        gguf_config(make_header(model_metadata() | {"split.count": 2}))
    with pytest.raises(ValueError, match=r"token_embd\.weight"):
        gguf_config(GgufHeader(3, model_metadata(), (), 0))
