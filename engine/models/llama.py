"""Llama and what is built like it: Mistral, SmolLM, Qwen2 (Touvron et al., 2023)."""

from copy import copy
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ModelConfig
from ..parts import Parts
from ..rope import Rope
from ..streams import NO_STREAMS, Streams
from ..weights import ROPE_FACTORS, Shape, Weights

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""Our linear layers, and the checkpoint's that each joins along the output dimension."""


class Attention(Protocol):
    """One step's tokens and what they see; each device has its own."""

    def attend(self, layer_id: int, qkv: Tensor, head_norm: Any) -> Tensor:
        """[T, (heads + 2 kv_heads) * head_dim], Q and K neither normalised nor rotated -> [T, heads * head_dim].
        Stores K and V."""


class Layer:
    def __init__(self, config: ModelConfig, weights: Weights, layer_id: int, parts: Parts) -> None:
        self.layer_id = layer_id
        prefix = f"model.layers.{layer_id}"
        norms = [weights.take(f"{prefix}.{name}.weight") for name in ("input_layernorm", "post_attention_layernorm")]
        self.qkv = parts.norm_linear(norms[0], config.norm_eps, *_linear(weights, prefix, "self_attn.qkv_proj"))
        self.add_out = parts.add_linear(*_linear(weights, prefix, "self_attn.o_proj"))
        self.gate_up = parts.gated_linear(norms[1], config.norm_eps, *_linear(weights, prefix, "mlp.gate_up_proj"))
        self.add_down = parts.add_linear(*_linear(weights, prefix, "mlp.down_proj"))
        self.head_norm: Any = None

    def attend(self, x: Tensor, attention: Attention) -> Tensor:
        """Residual stream [T, hidden_size] -> the heads' outputs [T, heads * head_dim]; K and V are stored."""
        return attention.attend(self.layer_id, self.qkv(x), self.head_norm)

    def finish(self, x: Tensor, heads: Tensor, *, is_kept: bool = False) -> Tensor:
        """The residual stream with this layer added, each token by itself: in place, unless what came in `is_kept`."""
        after = torch.empty_like(x) if is_kept else x
        self.add_out(x, heads, after)
        self.add_down(after, self.gate_up(after), after)
        return after


class Llama:
    """A decoder. `config` is its sizes, `dtype` that of its weights and activations."""

    layer_type: type[Layer] = Layer

    def __init__(self, config: ModelConfig, weights: Weights, parts: Parts) -> None:
        self.config, self.dtype = config, weights.dtype
        factors = weights.take(ROPE_FACTORS) if weights.has(ROPE_FACTORS) else None
        self.rope = Rope(config.rope, config.head_dim, weights.dtype, factors)
        self.embedding = weights.take("model.embed_tokens.weight")
        head = self.embedding if config.tie_embeddings else weights.take("lm_head.weight")
        norm = weights.take("model.norm.weight")
        self.head = parts.head(norm, config.norm_eps, head)
        self.norm = parts.norm(norm, config.norm_eps)
        """What `head` does first: makes of `hidden` what others call the last hidden states."""
        self.layers = [self.layer_type(config, weights, layer_id, parts) for layer_id in range(config.num_layers)]

    def forward(self, token_ids: Tensor, wanted: Tensor | None, attention: Attention) -> Tensor:
        """Ids [T] -> fp32 logits [N, vocab_size] of the tokens at the indices `wanted` [N], or of all.

        All new K and V go to attention's pool; past the last layer's, only wanted tokens are computed.
        """
        return self.forward_embedded(F.embedding(token_ids, self.embedding), wanted, attention)

    def forward_embedded(self, x: Tensor, wanted: Tensor | None, attention: Attention) -> Tensor:
        """As `forward`, of embeddings [T, hidden_size], which may be overwritten."""
        hidden = self.hidden(x, wanted, attention)
        return self.head(hidden) if len(hidden) else torch.empty(0, self.config.vocab_size, device=x.device)

    def hidden(self, x: Tensor, wanted: Tensor | None, attention: Attention, streams: Streams = NO_STREAMS) -> Tensor:
        """As `forward_embedded`, but what `head` makes logits of, [N, hidden_size]. `streams` catches those of all
        tokens: with the last of them, the last layer is computed for all, too."""
        for layer in self.layers[:-1]:
            streams.catch(layer.layer_id, x)
            x = layer.finish(x, layer.attend(x, attention), is_kept=streams.wants(layer.layer_id))
        last, end = self.layers[-1], len(self.layers)
        streams.catch(last.layer_id, x)
        heads, is_kept = last.attend(x, attention), streams.wants(last.layer_id)
        if streams.wants(end):
            x = last.finish(x, heads, is_kept=is_kept)
            streams.catch(end, x)
            return x if wanted is None else x[wanted]
        if wanted is not None:
            x, heads = x[wanted], heads[wanted]
        return last.finish(x, heads, is_kept=is_kept) if len(x) else x

    def first_layers(self, count: int) -> "Llama":
        """A model of the first `count` layers, and the same embedding and head; weights are shared."""
        assert 0 < count < len(self.layers)
        model = copy(self)
        model.layers = self.layers[:count]
        return model

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


def _linear(weights: Weights, prefix: str, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one of `FUSED`."""
    parts = [f"{prefix}.{part}" for part in FUSED[name]]
    has_bias = weights.has(f"{parts[0]}.bias")
    bias = weights.take(*(f"{part}.bias" for part in parts)) if has_bias else None
    return weights.take(*(f"{part}.weight" for part in parts)), bias
