"""From an encoder's configuration and its folder to a running engine."""

from pathlib import Path

import torch

from ..load_progress import LoadProgress
from ..weights import Weights
from .config import EncoderConfig
from .engine import EncoderEngine
from .model import Encoder
from .source import open_encoder

DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Vectors are compared with those of other programs: without being asked, nothing is rounded."""


def load_encoder(
    config: EncoderConfig,
    folder: Path,
    *,
    dtype: str,
    load_format: str,
    device: str,
    num_blocks: int,
    block_size: int,
    separator_id: int | None,
) -> EncoderEngine:
    """`device` is torch's name of it. Raises ValueError where the weights are not those that the configuration
    describes."""
    model = load_model(config, folder, DTYPES[dtype], load_format, device)
    return EncoderEngine(model, num_blocks, block_size, separator_id)


@torch.inference_mode()
def load_model(
    config: EncoderConfig, folder: Path, dtype: torch.dtype, load_format: str = "auto", device: str = "cpu"
) -> Encoder:
    expected = Encoder.weight_shapes(config)
    weights = Weights(open_encoder(folder, expected, load_format, device), expected, dtype, device)
    weights.on_taken = LoadProgress(weights.num_bytes)
    return Encoder(config, weights)
