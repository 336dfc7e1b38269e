"""An EAGLE-3 head of random numbers, in the size that published ones have for a model: it costs what they cost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..engine.config import ModelConfig
from ..engine.eagle.config import EagleConfig
from ..engine.eagle.weights import expected_shapes

DRAFT_VOCAB_SIZE = 32_000
"""Of published heads for models with 128k tokens."""


def save_dummy_head(folder: Path, target: Mapping[str, Any]) -> Path:
    """`target`: a parsed config.json."""
    draft_vocab_size = min(DRAFT_VOCAB_SIZE, target["vocab_size"] // 2)
    config = {**target, "num_hidden_layers": 1, "draft_vocab_size": draft_vocab_size}
    shapes = expected_shapes(EagleConfig.from_hf(config, ModelConfig.from_hf(target)), ())
    tensors = {name: torch.randn(shape, dtype=torch.bfloat16) * 0.02 for name, shape in shapes.items() if name != "d2t"}
    tensors["d2t"] = torch.zeros(draft_vocab_size, dtype=torch.int64)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
