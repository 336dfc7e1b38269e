"""Workers on the CPU with a head for the demo model: what they load, and what it takes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from isthmus.engine.plan import HeadedEngine
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.launch.config import EngineOptions, ModelOptions
from isthmus.launch.eagle_head import facts_with_head, find_head, fingerprint_with_head, needs_with_head
from isthmus.launch.model import Model, find_model
from isthmus.launch.resolve import ConfigError
from isthmus.launch.worker_load import Loader
from isthmus.tests.launch.test_worker_load import CONFIG, LIMITS, MODEL, ON_CPU
from isthmus.wire.messages import CacheGroup
from safetensors.torch import save_file

HIDDEN, INNER, KV = 576, 32, 192
HEAD_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "vocab_size": 49152,
}
SHAPES = {
    "fc.weight": (HIDDEN, 2 * HIDDEN),
    "layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "layers.0.self_attn.k_proj.weight": (KV, HIDDEN),
    "layers.0.self_attn.v_proj.weight": (KV, HIDDEN),
    "layers.0.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "layers.0.mlp.gate_proj.weight": (INNER, HIDDEN),
    "layers.0.mlp.up_proj.weight": (INNER, HIDDEN),
    "layers.0.mlp.down_proj.weight": (HIDDEN, INNER),
    "layers.0.post_attention_layernorm.weight": (HIDDEN,),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("head")
    (made / "config.json").write_text(json.dumps(HEAD_CONFIG))
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in SHAPES.items()}
    save_file(tensors, made / "model.safetensors")
    return made


@pytest.fixture(scope="module")
def demo() -> Model:
    return find_model(ModelOptions(MODEL))


def loader(folder: Path, *, draws: bool) -> Loader:
    config = replace(CONFIG, engine=EngineOptions(num_blocks=8, dtype="float32"))
    return Loader(config, ON_CPU, LIMITS, draws=draws, speculation=SpeculationConfig("eagle", 3, str(folder)))


@pytest.mark.parametrize("draws", [False, True], ids=["prefill", "decode"])
def test_workers_of_both_roles_have_the_head(folder: Path, demo: Model, draws: bool) -> None:
    loaded = loader(folder, draws=draws)(MODEL)
    engine = loaded.engine
    assert isinstance(engine, HeadedEngine)
    hidden = engine.read_hidden(0)
    assert hidden is not None
    assert hidden.nbytes == 8 + 4 * HIDDEN
    assert engine.bytes_per_block == 16 * (demo.facts("float32").kv_bytes_per_token + 2 * KV * 4)
    plain = demo.fingerprint(16, "float32", "torch")
    assert loaded.fingerprint.layout == (*plain.layout, CacheGroup((30,), 3, 64, "float32"))
    assert loaded.fingerprint.weights.startswith(f"{plain.weights}+")
    assert msgspec.structs.replace(loaded.fingerprint, layout=plain.layout, weights=plain.weights) == plain


def test_what_a_head_takes_counts_for_every_token(folder: Path, demo: Model) -> None:
    head = find_head(SpeculationConfig("eagle", model=str(folder)), demo)
    plain = demo.facts("bfloat16")
    both = facts_with_head(plain, head, "bfloat16", 16)
    assert both.kv_bytes_per_token - plain.kv_bytes_per_token == 2 * 2 * KV + 2 * HIDDEN // 16
    assert both.max_model_len == plain.max_model_len


def test_a_gpu_has_room_for_the_head(folder: Path, demo: Model) -> None:
    head = find_head(SpeculationConfig("eagle", model=str(folder)), demo)
    options: dict[str, Any] = {"dtype": "auto", "kv_cache_dtype": "fp8_e4m3", "device": "cuda", "block_size": 16}
    (facts, footprint), (plain_facts, plain) = (needs_with_head(demo, one, **options) for one in (head, None))
    assert (plain_facts, plain) == demo.needs("auto", "fp8_e4m3", "cuda")
    num_matrices = sum(a * b for a, *rest in SHAPES.values() for b in rest)
    assert footprint.weight_bytes - plain.weight_bytes == 2 * (num_matrices + 2 * 49152 * HIDDEN)
    assert facts.kv_bytes_per_token - plain_facts.kv_bytes_per_token == 2 * KV + HIDDEN // 16


def test_heads_of_one_shape_are_told_apart(folder: Path, tmp_path: Path, demo: Model) -> None:
    """Also those that are not safetensors."""
    prints = []
    for name, save in (("safe", None), ("zeros", torch.zeros), ("ones", torch.ones)):
        made = folder if save is None else tmp_path / name
        if save is not None:
            made.mkdir()
            (made / "config.json").write_text(json.dumps(HEAD_CONFIG))
            torch.save({key: save(shape) for key, shape in SHAPES.items()}, made / "pytorch_model.bin")
        head = find_head(SpeculationConfig("eagle", model=str(made)), demo)
        prints.append(fingerprint_with_head(demo.fingerprint(16, "float32", "torch"), head, "float32"))
    assert len({one.weights for one in prints}) == 3
    assert len({one.layout for one in prints}) == 1


def test_without_a_head_nothing_changes(demo: Model) -> None:
    facts, fingerprint = demo.facts("float32"), demo.fingerprint(16, "float32", "torch")
    for speculation in (SpeculationConfig(), SpeculationConfig("ngram"), SpeculationConfig("draft", model="x")):
        assert find_head(speculation, demo) is None
    assert facts_with_head(facts, None, "float32", 16) is facts
    assert fingerprint_with_head(fingerprint, None, "float32") is fingerprint


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": 32000}, "the EAGLE head has 32000 tokens, the target 49152"),
        ({"num_hidden_layers": 2}, "the EAGLE head has 2 layers"),
        ({"intermediate_size": 64}, "wrong shape: layers.0.mlp.gate_proj.weight"),
    ],
)
def test_heads_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, int], sentence: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**HEAD_CONFIG, **changes}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ConfigError, match=sentence):
        loader(tmp_path, draws=True)(MODEL)
