"""The model that a head is trained for, frozen: what it makes of whole texts, in plain torch on any device."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engine.config import ModelConfig
from ...engine.linear import Linear, PlainLinear
from ...engine.load import load_model
from ...engine.models.llama import Llama
from ...engine.parts import AddLinear
from ...engine.rope import Rope
from ...engine.streams import Streams


class PlainParts:
    """engine.parts.Parts of unpacked weights: no kernels, nothing that has to be warmed up."""

    def norm_linear(self, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Linear:
        return lambda x: F.linear(F.rms_norm(x, norm.shape, norm, eps), weight, bias)

    def gated_linear(self, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Linear:
        linear = self.norm_linear(norm, eps, weight, bias)

        def gated(x: Tensor) -> Tensor:
            gate, up = linear(x).chunk(2, -1)
            return F.silu(gate) * up

        return gated

    def add_linear(self, weight: Tensor, bias: Tensor | None) -> AddLinear:
        linear = PlainLinear(weight, bias)

        def add(x: Tensor, y: Tensor, into: Tensor) -> None:
            torch.add(x, linear(y), out=into)

        return add

    def head(self, norm: Tensor, eps: float, weight: Tensor) -> "PlainHead":
        return PlainHead(norm, eps, weight)

    def norm(self, weight: Tensor, eps: float) -> Linear:
        return lambda x: F.rms_norm(x, weight.shape, weight, eps)

    def head_norm(self, config: ModelConfig, q_norm: Tensor, k_norm: Tensor) -> Any:
        weight = torch.cat((q_norm.expand(config.num_heads, -1), k_norm.expand(config.num_kv_heads, -1)))
        return lambda heads: F.rms_norm(heads, heads.shape[-1:], None, config.norm_eps) * weight


class PlainHead:
    """Of the target: its last norm and output layer, which a head starts from."""

    def __init__(self, norm: Tensor, eps: float, weight: Tensor) -> None:
        self.norm, self.eps, self.weight = norm, eps, weight

    def __call__(self, x: Tensor) -> Tensor:
        """fp32, from sums in the weights' dtype."""
        return F.linear(F.rms_norm(x, self.norm.shape, self.norm, self.eps), self.weight).float()


class FrozenTarget:
    """`aux_layers`: the streams that make a feature, see engine.streams."""

    def __init__(self, model: Llama, aux_layers: tuple[int, ...]) -> None:
        """`model`: of `PlainParts`."""
        assert isinstance(model.head, PlainHead), "the last norm and the output layer are needed apart"
        self.config, self.dtype, self.device = model.config, model.dtype, model.embedding.device
        self.head: PlainHead = model.head
        self._model, self._aux_layers, self._angles = model, aux_layers, Angles(model.rope)

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        weights: Path | None,
        dtype: torch.dtype,
        device: torch.device,
        aux_layers: tuple[int, ...],
        load_format: str = "auto",
    ) -> "FrozenTarget":
        """See engine.load.load_model."""
        return cls(load_model(config, weights, dtype, load_format, parts=PlainParts(), device=device), aux_layers)

    @torch.no_grad()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Ids of any shape -> [..., hidden]."""
        return F.embedding(token_ids, self._model.embedding)

    @torch.no_grad()
    def read(self, token_ids: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Texts from their beginning, [B, T] -> features [B, T, num_streams * hidden], and logits of what follows the
        positions `wanted` (indices [N] of the B * T), fp32 [N, vocab_size]."""
        num_texts, length = token_ids.shape
        streams = Streams(self._aux_layers)
        attention = WholeTexts(num_texts, self._angles.at(length, self.device), self.config)
        hidden = self._model.hidden(self.embed(token_ids.flatten()), wanted, attention, streams)
        return streams.features.unflatten(0, token_ids.shape), self.head(hidden)


class WholeTexts:
    """engine.models.llama.Attention of texts of one length from their beginning, without a cache."""

    def __init__(self, num_texts: int, angles: tuple[Tensor, Tensor], config: ModelConfig) -> None:
        """`angles`: of `Angles.at`."""
        self._num_texts, self._angles, self._config = num_texts, angles, config

    def attend(self, layer_id: int, qkv: Tensor, head_norm: Any) -> Tensor:
        config = self._config
        heads = qkv.view(self._num_texts, -1, qkv.shape[1] // config.head_dim, config.head_dim)
        rotated = heads[:, :, : config.num_heads + config.num_kv_heads]
        if head_norm is not None:
            rotated.copy_(head_norm(rotated))
        rotated.copy_(rotate(rotated, *self._angles))
        sizes = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        q, k, v = (part.transpose(1, 2) for part in heads.split(sizes, 2))
        k, v = (part.repeat_interleave(config.group_size, 1) for part in (k, v))
        seen = window_mask(config.windows[layer_id], q.shape[2], qkv.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)


def window_mask(window: int | None, length: int, device: torch.device) -> Tensor | None:
    """[T, T]: what a token of a layer with a window sees; None where that is all before it."""
    if window is None or window >= length:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


class Angles:
    """Of the positions of whole texts, in fp32; made once for each device and so many of them."""

    def __init__(self, rope: Rope) -> None:
        self._rope, self._table = rope, torch.empty(0)

    def at(self, length: int, device: torch.device, first: int = 0) -> tuple[Tensor, Tensor]:
        """cos and signed sin of positions from `first` on, each [length, 1, head_dim]."""
        end = first + length
        if len(self._table) < end or self._table.device != device:
            self._table = self._rope.table(2 * end).to(device)
        cos, sin = self._table[first:end].unbind(1)
        return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, T, heads, head_dim], in its dtype, see engine.rope.rotate_; `cos` and `sin` of `Angles.at`."""
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    return (heads * cos + swapped * sin).to(heads.dtype)
