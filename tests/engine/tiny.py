"""Two-layer random models, saved as checkpoints, and ways to run them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from isthmus.decode.sampler import Samples
from isthmus.engine.config import ModelConfig
from isthmus.engine.gguf_weights import BLOCK_NAMES, GLOBAL_NAMES
from isthmus.engine.kv_pool import KvPool
from isthmus.engine.load import load_engine, load_model
from isthmus.engine.models.llama import Llama
from isthmus.engine.plan import Draw, Plan, Row, SequenceSeed
from isthmus.engine.torch_engine import TorchEngine
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB_SIZE = 320
BLOCK_SIZE = 4
NUM_BLOCKS = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 2.5}


def llama(**changes: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES, "rope_theta": 10000.0, **changes}


def mistral(**changes: Any) -> dict[str, Any]:
    return llama(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=8, **changes)


def qwen2(**changes: Any) -> dict[str, Any]:
    return llama(architectures=["Qwen2ForCausalLM"], model_type="qwen2", **changes)


def qwen3(**changes: Any) -> dict[str, Any]:
    return llama(architectures=["Qwen3ForCausalLM"], model_type="qwen3", **{"head_dim": 24, **changes})


def reference_model(config: Mapping[str, Any], seed: int = 0) -> Any:
    """transformers' model with random weights, norms and biases included (they start as ones and zeros)."""
    torch.manual_seed(seed)
    hf_config = AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
    model = AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def reference_logits(model: Any, token_ids: Sequence[int]) -> Tensor:
    """[T, vocab_size]."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([list(token_ids)])).logits[0]
    return logits


class Greedy:
    def admit(self, seed: SequenceSeed) -> None: ...

    def retire(self, seq_id: int) -> None: ...

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Samples:
        assert len(logits) == len(draws)
        return Samples(logits.argmax(-1), [None] * len(draws), [b""] * len(draws))

    def guess(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        return logits.argmax(-1).tolist()

    def forget(self, seq_id: int, count: int) -> None: ...


def engine_of(config: Mapping[str, Any], weights: Path | None, **options: Any) -> TorchEngine:
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "load_format": "auto",
        "block_size": BLOCK_SIZE,
        "num_blocks": NUM_BLOCKS,
        "sampler": Greedy(),
    }
    return load_engine(config, weights, **{**defaults, **options})


def nan_engine(model: Llama, num_blocks: int = NUM_BLOCKS, block_size: int = BLOCK_SIZE) -> TorchEngine:
    """An engine whose pool holds only NaN: whatever reads a slot that no token was stored in shows."""
    config = model.config
    pool = KvPool(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=model.dtype,
    )
    pool.kv.fill_(float("nan"))
    return TorchEngine(model, pool, Greedy())


def tiny_model(config: Mapping[str, Any], weights: Path | None, load_format: str = "auto") -> Llama:
    return load_model(ModelConfig.from_hf(config), weights, torch.float32, load_format)


def all_logits(
    engine: TorchEngine, token_ids: Sequence[int], block_table: Sequence[int] = tuple(range(1, 41))
) -> Tensor:
    """[T, vocab_size] of every position, one chunk of growing length after another: each in a fresh plan of its own."""
    rows = []
    for end in range(1, len(token_ids) + 1):
        row = Row(1, token_ids[:end], 0, block_table, keep_logits=True)
        rows.append(engine.launch(Plan(end, (row,))).result().logits[1])
    return torch.stack(rows)


def prefill(
    engine: TorchEngine, token_ids: Sequence[int], block_table: Sequence[int], chunk: int, start: int = 0
) -> Tensor:
    """Logits of the last position, computed in chunks."""
    for first in range(start, len(token_ids), chunk):
        row = Row(1, token_ids[first : first + chunk], first, block_table, keep_logits=True)
        logits = engine.launch(Plan(first, (row,))).result().logits[1]
    return logits


def prompt(length: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist()


def write_gguf(path: Path, model: Any, arch: str, kind: gguf.GGMLQuantizationType, **extra: np.ndarray) -> Path:
    """The model as llama.cpp's converter would write it, linear layers in `kind`; `extra`: tensors by GGUF name."""
    writer = gguf.GGUFWriter(path, arch)
    config = model.config
    for name, tensor in {**_gguf_tensors(model, arch, config), **extra}.items():
        if tensor.ndim == 2:
            stored = gguf.quantize(tensor, kind)
            writer.add_tensor(name, stored, raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors(model: Any, arch: str, config: Any) -> dict[str, np.ndarray]:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if arch == "llama" else {}
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        head_count = heads.get(name.split(".")[-2])
        if head_count:  # halves to pairs, as llama.cpp's converter does
            array = array.reshape(head_count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        tensors[_gguf_name(name)] = np.ascontiguousarray(array)
    return tensors


def _gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    for ours, theirs in GLOBAL_NAMES.items():
        if stem == theirs:
            return f"{ours}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{next(k for k, v in BLOCK_NAMES.items() if v == part)}.{kind}"
