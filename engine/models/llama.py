"""Llama and what is built like it: Mistral, SmolLM, Qwen2 (Touvron et al., 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import PagedAttention
from ..config import ModelConfig
from ..linear import Linear, make_linear
from ..norm import RmsNorm
from ..rope import Rope, rotate_
from ..weights import ROPE_FACTORS, Shape, Weights

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""Our linear layers, and the checkpoint's that each joins along the output dimension."""


class Layer:
    def __init__(self, config: ModelConfig, weights: Weights, layer_id: int) -> None:
        self.layer_id, self.head_dim = layer_id, config.head_dim
        self.num_rotated = config.num_heads + config.num_kv_heads
        prefix = f"model.layers.{layer_id}"
        self.attention_norm = RmsNorm(weights.take(f"{prefix}.input_layernorm.weight"), config.norm_eps)
        self.mlp_norm = RmsNorm(weights.take(f"{prefix}.post_attention_layernorm.weight"), config.norm_eps)
        self.qkv = _linear(weights, prefix, "self_attn.qkv_proj")
        self.out = _linear(weights, prefix, "self_attn.o_proj")
        self.gate_up = _linear(weights, prefix, "mlp.gate_up_proj")
        self.down = _linear(weights, prefix, "mlp.down_proj")

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, attention: PagedAttention) -> Tensor:
        """Residual stream [T, hidden_size] -> the heads' outputs [T, heads * head_dim]; K and V are stored."""
        qkv = self.qkv(self.attention_norm(x)).view(len(x), -1, self.head_dim)
        rotated = qkv[:, : self.num_rotated]
        self.normalize_heads_(rotated)
        rotate_(rotated, cos, sin)
        return attention.attend(self.layer_id, qkv)

    def finish_(self, x: Tensor, heads: Tensor) -> None:
        """Adds this layer to the residual stream, each token by itself."""
        x.add_(self.out(heads))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        x.add_(self.down(F.silu(gate).mul_(up)))

    def normalize_heads_(self, heads: Tensor) -> None:
        """For families that normalise the heads of Q and K, [T, heads + kv_heads, head_dim]."""


class Llama:
    """A decoder. `config` is its sizes, `dtype` that of its weights and KV."""

    layer_type: type[Layer] = Layer

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config, self.dtype = config, weights.dtype
        factors = weights.take(ROPE_FACTORS) if weights.has(ROPE_FACTORS) else None
        self.rope = Rope(config.rope, config.head_dim, weights.dtype, factors)
        self.embedding = weights.take("model.embed_tokens.weight")
        self.norm = RmsNorm(weights.take("model.norm.weight"), config.norm_eps)
        self.head = make_linear((self.embedding if config.tie_embeddings else weights.take("lm_head.weight")).float())
        self.layers = [self.layer_type(config, weights, layer_id) for layer_id in range(config.num_layers)]

    def forward(self, token_ids: Tensor, wanted: Tensor, attention: PagedAttention) -> Tensor:
        """int64 [T] -> fp32 logits [N, vocab_size] of the tokens at the indices `wanted` [N], from fp32 sums.

        All new K and V go to attention's pool; past the last layer's, only wanted tokens are computed.
        """
        x = F.embedding(token_ids, self.embedding)
        cos, sin = self.rope.at(attention.positions)
        for layer in self.layers[:-1]:
            layer.finish_(x, layer.attend(x, cos, sin, attention))
        last = self.layers[-1]
        heads = last.attend(x, cos, sin, attention)
        if not len(wanted):
            return torch.empty(0, self.config.vocab_size)
        x = x[wanted]
        last.finish_(x, heads[wanted])
        return self.head(self.norm(x).float())

    @classmethod
    def weight_shapes(cls, config: ModelConfig) -> dict[str, Shape]:
        """Every tensor of a checkpoint, by Hugging Face's name."""
        shapes: dict[str, Shape] = {ROPE_FACTORS: (config.head_dim // 2,)}
        shapes["model.embed_tokens.weight"] = (config.vocab_size, config.hidden_size)
        for layer_id in range(config.num_layers):
            for name, shape in cls.layer_shapes(config).items():
                shapes[f"model.layers.{layer_id}.{name}"] = shape
        shapes["model.norm.weight"] = (config.hidden_size,)
        if not config.tie_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
        return shapes

    @classmethod
    def layer_shapes(cls, config: ModelConfig) -> dict[str, Shape]:
        hidden, inner = config.hidden_size, config.intermediate_size
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        linears = {
            "self_attn.q_proj": (q, hidden, config.qkv_bias),
            "self_attn.k_proj": (kv, hidden, config.qkv_bias),
            "self_attn.v_proj": (kv, hidden, config.qkv_bias),
            "self_attn.o_proj": (hidden, q, config.o_bias),
            "mlp.gate_proj": (inner, hidden, config.mlp_bias),
            "mlp.up_proj": (inner, hidden, config.mlp_bias),
            "mlp.down_proj": (hidden, inner, config.mlp_bias),
        }
        shapes: dict[str, Shape] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        shapes |= {f"{name}.weight": (out, into) for name, (out, into, _) in linears.items()}
        return shapes | {f"{name}.bias": (out,) for name, (out, _, has_bias) in linears.items() if has_bias}


def _linear(weights: Weights, prefix: str, name: str) -> Linear:
    parts = [f"{prefix}.{part}" for part in FUSED[name]]
    has_bias = weights.has(f"{parts[0]}.bias")
    bias = weights.take(*(f"{part}.bias" for part in parts)) if has_bias else None
    return make_linear(weights.take(*(f"{part}.weight" for part in parts)), bias)
