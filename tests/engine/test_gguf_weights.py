"""GGUF files as llama.cpp's converter writes them: names, reordered rows, quantized types, rope factors."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from isthmus.engine.config import ModelConfig
from isthmus.engine.gguf_weights import GgufFile, hf_name, unpermute
from isthmus.engine.rope import Rope
from isthmus.tests.engine import tiny

KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
TOKENS = tiny.prompt(12)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", tiny.llama()),
    "llama, tied, biases": (
        "llama",
        tiny.llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    ),
    "mistral": ("llama", tiny.mistral()),
    "qwen2": ("qwen2", tiny.qwen2()),
    "qwen3": ("qwen3", tiny.qwen3(num_attention_heads=8, head_dim=32)),
}


def check(config: dict[str, Any], path: Path, reference: Any) -> None:
    expected = tiny.reference_logits(reference, TOKENS)[-1]
    logits = tiny.prefill(tiny.engine_of(config, path), TOKENS, range(3), 12)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    arch, config = FAMILIES[family]
    reference = tiny.reference_model(config)
    check(config, tiny.write_gguf(tmp_path / "m.gguf", reference, arch, Kind.F32), reference)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_types(kind: Kind, tmp_path: Path) -> None:
    """Equal to transformers' model with the weights that quantization leaves."""
    config = tiny.llama()
    reference = tiny.reference_model(config)
    path = tiny.write_gguf(tmp_path / "m.gguf", reference, "llama", kind)
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 2:
                stored = gguf.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.tensor(gguf.dequantize(stored, kind)))
    check(config, path, reference)


@pytest.mark.parametrize(
    "kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL], ids=lambda kind: kind.name
)
def test_types_that_only_dequantize(kind: Kind, tmp_path: Path) -> None:
    """The gguf package cannot make these: random bytes, read as it reads them."""
    block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 120, (64, 256 // block_size * type_size), np.uint8)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path, ModelConfig.from_hf(tiny.llama()))
    name = "model.layers.0.mlp.up_proj.weight"
    assert file.shapes == {name: (64, 256), "model.norm.weight": (64,)}
    np.testing.assert_array_equal(file.load(name).numpy(), gguf.dequantize(raw, kind))


def test_rope_factors(tmp_path: Path) -> None:
    """rope_freqs.weight, which is how GGUF states Llama 3's scaling, gives what config.json's rope_scaling gives."""
    plain, scaled = tiny.llama(), tiny.llama(rope_scaling=tiny.LLAMA3)
    frequencies = [Rope(ModelConfig.from_hf(c).rope, 16, torch.float32).frequencies for c in (plain, scaled)]
    factors = (frequencies[0] / frequencies[1]).numpy()
    assert factors.max() > 2
    reference = tiny.reference_model(scaled)
    path = tiny.write_gguf(tmp_path / "m.gguf", reference, "llama", Kind.F32, **{"rope_freqs.weight": factors})
    check(plain, path, reference)


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    config = tiny.llama()
    extra = {"blk.0.ffn_gate_inp.weight": np.ones(64, np.float32)}
    path = tiny.write_gguf(tmp_path / "m.gguf", tiny.reference_model(config), "llama", Kind.F32, **extra)
    with pytest.raises(ValueError, match=r"left over: blk.0.ffn_gate_inp.weight$"):
        tiny.engine_of(config, path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    config = tiny.llama()
    path = tiny.write_gguf(tmp_path / "m.gguf", tiny.reference_model(config), "llama", Kind.F32)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="ends within the tensor"):
        tiny.engine_of(config, path)


@pytest.mark.parametrize(
    ("gguf_name", "name"),
    [
        ("blk.12.attn_k_norm.weight", "model.layers.12.self_attn.k_norm.weight"),
        ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
        ("output.weight", "lm_head.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("rope_freqs.weight", "rope_freqs.weight"),
        ("blk.0.unheard_of.weight", "blk.0.unheard_of.weight"),
        ("rope_factors_long.weight", "rope_factors_long.weight"),
    ],
)
def test_names(gguf_name: str, name: str) -> None:
    assert hf_name(gguf_name) == name


def test_unpermute() -> None:
    pairs = torch.tensor([0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11])
    assert unpermute(pairs, 2).tolist() == list(range(12))
    assert torch.equal(unpermute(pairs[:, None].expand(-1, 3), 2)[:, 1], torch.arange(12))
