"""Two-layer random models give transformers' logits, whatever way they were saved and however they are computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from isthmus.tests.engine import tiny

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": tiny.llama(),
    "llama, tied": tiny.llama(tie_word_embeddings=True),
    "llama, llama3 rope": tiny.llama(rope_scaling=tiny.LLAMA3),
    "llama, yarn rope": tiny.llama(rope_scaling=tiny.YARN),
    "llama, linear rope": tiny.llama(rope_scaling=tiny.LINEAR),
    "llama, biases": tiny.llama(attention_bias=True, mlp_bias=True),
    "llama, head dim, all KV heads": tiny.llama(head_dim=24, num_key_value_heads=4),
    "llama, one KV head": tiny.llama(num_key_value_heads=1),
    "mistral, window": tiny.mistral(),
    "mistral, no window": {**tiny.mistral(), "sliding_window": None},
    "qwen2": tiny.qwen2(),
    "qwen2, tied, window in one layer": tiny.qwen2(
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": tiny.qwen3(),
    "qwen3, tied, biases, yarn": tiny.qwen3(tie_word_embeddings=True, attention_bias=True, rope_scaling=tiny.YARN),
}
TOKENS = tiny.prompt(45)
SCATTERED = [30, 2, 17, 16, 9, 40, 41, 42, 5, 11, 60, 3, 7]
RUN = list(range(20, 33))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    reference = tiny.reference_model(config)
    expected = tiny.reference_logits(reference, TOKENS)
    model = tiny.tiny_model(config, tiny.save(reference, tmp_path))
    for table in (RUN, SCATTERED):
        for chunk in (45, 16, 7, 1):
            engine = tiny.nan_engine(model)
            torch.testing.assert_close(tiny.prefill(engine, TOKENS, table, chunk), expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral, window", "qwen3"])
def test_every_position(name: str, tmp_path: Path) -> None:
    reference = tiny.reference_model(CONFIGS[name])
    engine = tiny.nan_engine(tiny.tiny_model(CONFIGS[name], tiny.save(reference, tmp_path)))
    expected = tiny.reference_logits(reference, TOKENS[:20])
    torch.testing.assert_close(tiny.all_logits(engine, TOKENS[:20]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [16, 1])
def test_bfloat16_is_near(chunk: int, tmp_path: Path) -> None:
    config = CONFIGS["qwen3"]
    reference = tiny.reference_model(config)
    engine = tiny.engine_of(config, tiny.save(reference, tmp_path), dtype="bfloat16")
    logits = tiny.prefill(engine, TOKENS, RUN, chunk)
    with torch.no_grad():
        theirs = reference.to(torch.bfloat16)(torch.tensor([TOKENS])).logits[0, -1].float()
        exact = tiny.reference_logits(tiny.reference_model(config), TOKENS)[-1]
    assert logits.dtype == torch.float32
    assert (logits - exact).norm() <= 1.25 * (theirs - exact).norm()


def test_random_models_differ_between_families(tmp_path: Path) -> None:
    """The comparison above could not see a rope, window or bias that changed nothing."""
    plain = tiny.reference_logits(tiny.reference_model(CONFIGS["llama"]), TOKENS)[-1]
    for name in ("llama, llama3 rope", "llama, yarn rope", "llama, linear rope", "mistral, window"):
        other = tiny.reference_logits(tiny.reference_model(CONFIGS[name]), TOKENS)[-1]
        assert (plain - other).abs().max() > 0.1, name
