"""Rotary position embedding (Su et al., 2021), with the context extensions that checkpoints use.

Linear: kaiokendev, 2023; YaRN: Peng et al., 2023 (arXiv 2309.00071); Llama 3's: as published with Llama 3.1.
"""

from math import ceil, floor, log, pi

import torch
from torch import Tensor

from .config import RopeConfig


class Rope:
    """Angles of a model's positions. `factors` (GGUF's rope_freqs.weight, [head_dim / 2]) divide the frequencies."""

    def __init__(self, config: RopeConfig, head_dim: int, dtype: torch.dtype, factors: Tensor | None = None) -> None:
        self.frequencies, self.scale = inverse_frequencies(config, head_dim)
        if factors is not None:
            self.frequencies = self.frequencies / factors.float().cpu()
        self.dtype = dtype

    def table(self, num_positions: int) -> Tensor:
        """fp32 [num_positions, 2, head_dim / 2]: each position's cos, then its sin."""
        angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * self.frequencies
        return torch.stack((angles.cos(), angles.sin()), 1).mul_(self.scale)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin of int64 positions [T], each [T, 1, head_dim], as `rotate_` takes them."""
        angles = positions[:, None].float() * self.frequencies
        cos, sin = angles.cos().mul_(self.scale), angles.sin().mul_(self.scale)
        return torch.cat((cos, cos), -1).to(self.dtype)[:, None], torch.cat((-sin, sin), -1).to(self.dtype)[:, None]


def rotate_(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotates [T, heads, head_dim] in place: halves (a, b) become (a cos − b sin, b cos + a sin)."""
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    heads.mul_(cos).addcmul_(swapped, sin)


def inverse_frequencies(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """fp32 [head_dim / 2] angles a position, and the factor on cos and sin."""
    plain = 1.0 / config.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if config.kind == "linear":
        return plain / config.need("factor"), 1.0
    if config.kind == "llama3":
        return _llama3(config, plain), 1.0
    if config.kind == "yarn":
        return _yarn(config, plain), _yarn_scale(config)
    assert config.kind == "default"
    return plain, 1.0


def _llama3(config: RopeConfig, plain: Tensor) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between interpolated."""
    low, high = config.need("low_freq_factor"), config.need("high_freq_factor")
    turns = config.need("original_max_position_embeddings") * plain / (2 * pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / config.need("factor") + kept * plain


def _yarn(config: RopeConfig, plain: Tensor) -> Tensor:
    """Dimensions that turn more than beta_fast times in the original context are kept, fewer than beta_slow slowed."""
    low, high = _yarn_range(config, 2 * len(plain))
    slowed = ((torch.arange(len(plain), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / config.need("factor") * slowed + plain * (1 - slowed)


def _yarn_range(config: RopeConfig, head_dim: int) -> tuple[float, float]:
    def dimension(turns: float) -> float:
        length = config.need("original_max_position_embeddings")
        return head_dim * log(length / (turns * 2 * pi)) / (2 * log(config.theta))

    low, high = dimension(config.value("beta_fast", 32.0) or 32.0), dimension(config.value("beta_slow", 1.0) or 1.0)
    if config.value("truncate", 1.0):
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high if high != low else high + 0.001


def _yarn_scale(config: RopeConfig) -> float:
    given = config.value("attention_factor", 0.0)
    if given:
        return given
    factor = config.need("factor")
    mscale, mscale_all = config.value("mscale", 0.0), config.value("mscale_all_dim", 0.0)
    if mscale and mscale_all:
        return _magnitude(factor, mscale) / _magnitude(factor, mscale_all)
    return _magnitude(factor, 1.0)


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * log(factor) + 1.0
