"""Qwen3: Llama with each head of Q and K normalised before the rotation (Qwen team, 2025)."""

import torch
from torch import Tensor

from ..config import ModelConfig
from ..norm import RmsNorm
from ..weights import Shape, Weights
from .llama import Layer, Llama


class Qwen3Layer(Layer):
    def __init__(self, config: ModelConfig, weights: Weights, layer_id: int) -> None:
        super().__init__(config, weights, layer_id)
        prefix = f"model.layers.{layer_id}.self_attn"
        q_norm, k_norm = weights.take(f"{prefix}.q_norm.weight"), weights.take(f"{prefix}.k_norm.weight")
        joined = torch.cat((q_norm.expand(config.num_heads, -1), k_norm.expand(config.num_kv_heads, -1)))
        self.head_norm = RmsNorm(joined, config.norm_eps)

    def normalize_heads_(self, heads: Tensor) -> None:
        heads.copy_(self.head_norm(heads))


class Qwen3(Llama):
    layer_type = Qwen3Layer

    @classmethod
    def layer_shapes(cls, config: ModelConfig) -> dict[str, Shape]:
        norms = {f"self_attn.{name}.weight": (config.head_dim,) for name in ("q_norm", "k_norm")}
        return super().layer_shapes(config) | norms
