from pathlib import Path

import pytest
import torch
from isthmus.engine.load import resolve_dtype
from isthmus.tests.engine import tiny


@pytest.mark.parametrize(
    ("dtype", "flags", "resolved"),
    [
        ("auto", {"avx2"}, "float32"),
        ("auto", {"avx2", "amx_bf16"}, "bfloat16"),
        ("auto", {"avx512_bf16"}, "bfloat16"),
        ("float32", {"amx_bf16"}, "float32"),
        ("bfloat16", set(), "bfloat16"),
    ],
)
def test_dtype(dtype: str, flags: set[str], resolved: str) -> None:
    assert resolve_dtype(dtype, frozenset(flags)) == resolved


def test_auto_asks_this_cpu() -> None:
    assert resolve_dtype("auto") in ("float32", "bfloat16")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="the dtype 'float8' is not supported"):
        resolve_dtype("float8")


def test_pool_size_from_bytes() -> None:
    per_block = 2 * 4 * 2 * 2 * 16 * 4
    engine = tiny.engine_of(
        tiny.llama(), None, load_format="dummy", num_blocks=None, kv_memory_bytes=10 * per_block + 1
    )
    assert (engine.num_blocks, engine.bytes_per_block) == (10, per_block)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": None}, "either num_blocks or kv_memory_bytes"),
        ({"num_blocks": None, "kv_memory_bytes": 100}, "no room for one block of 2048 bytes"),
        ({"load_format": "pt"}, "load_format is 'pt'"),
        ({"load_format": "auto"}, "no weights given"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.engine_of(tiny.llama(), None, **{"load_format": "dummy", **options})


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has neither"):
        tiny.engine_of(tiny.llama(), tmp_path / "nowhere")


@pytest.mark.parametrize("config", [tiny.llama(), tiny.qwen2(), tiny.qwen3(tie_word_embeddings=True)])
def test_dummy_models_run_and_repeat(config: dict[str, object]) -> None:
    logits = [
        tiny.prefill(tiny.engine_of(config, None, load_format="dummy"), tiny.prompt(9), range(3), 9) for _ in range(2)
    ]
    assert torch.equal(*logits)
    assert logits[0].isfinite().all()
