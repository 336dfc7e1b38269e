"""Qwen3: Llama with each head of Q and K normalised before the rotation (Qwen team, 2025)."""

from ..config import ModelConfig
from ..parts import Parts
from ..weights import Shape, Weights
from .llama import Layer, Llama


class Qwen3Layer(Layer):
    def __init__(self, config: ModelConfig, weights: Weights, layer_id: int, parts: Parts) -> None:
        super().__init__(config, weights, layer_id, parts)
        norms = [weights.take(f"model.layers.{layer_id}.self_attn.{name}.weight") for name in ("q_norm", "k_norm")]
        self.head_norm = parts.head_norm(config, *norms)


class Qwen3(Llama):
    layer_type = Qwen3Layer

    @classmethod
    def layer_shapes(cls, config: ModelConfig) -> dict[str, Shape]:
        norms = {f"self_attn.{name}.weight": (config.head_dim,) for name in ("q_norm", "k_norm")}
        return super().layer_shapes(config) | norms
