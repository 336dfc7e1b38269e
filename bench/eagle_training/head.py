"""An EAGLE-3 head as a torch module (Li et al., EAGLE-3, arXiv 2503.01840), its parameters under published names.

Positions are those of engine/eagle/head.py: the feature of position p goes with the token of p + 1, and the guess is of
the token of p + 2. From a *root* p a chain goes on: its own output in place of the feature of p + 1, with the next
token, and so on. All roots of a text are computed together: turn k of the root p sees the keys of the features up to p
and, of its own chain alone, those of turns 1 to k ("training-time test").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...engine.eagle.config import EagleConfig
from ...engine.rope import Rope
from .target import Angles, rotate


class SelfAttention(nn.Module):
    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        layer = config.layer
        heads, kv_heads = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
        self.q_proj = nn.Linear(2 * layer.hidden_size, heads, bias=False)
        self.k_proj = nn.Linear(2 * layer.hidden_size, kv_heads, bias=False)
        self.v_proj = nn.Linear(2 * layer.hidden_size, kv_heads, bias=False)
        self.o_proj = nn.Linear(heads, layer.hidden_size, bias=False)


class Mlp(nn.Module):
    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        hidden, inner = config.layer.hidden_size, config.layer.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MidLayer(nn.Module):
    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        hidden, eps = config.layer.hidden_size, config.layer.norm_eps
        self.self_attn = SelfAttention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.hidden_norm = nn.RMSNorm(hidden, eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)


class DraftHead(nn.Module):
    """Plain EAGLE-3: no biases, no norm before `fc`, the residual stream not normalised, an output layer of its own."""

    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        assert config.version == 3
        hidden, eps = config.layer.hidden_size, config.layer.norm_eps
        self.config = config
        self.fc = nn.Linear(config.feature_size, hidden, bias=False)
        self.midlayer = MidLayer(config)
        self.norm = nn.RMSNorm(hidden, eps)
        self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        self.angles = Angles(Rope(config.layer.rope, config.layer.head_dim, torch.float32))

    @torch.no_grad()
    def initialise(self, norm: Tensor, output: Tensor, features: Tensor, seed: int) -> None:
        """Where training begins: with the target's last norm [hidden] and the rows of its output layer that the head
        has [draft_vocab_size, hidden], scaled to logits that spread by about 1, as the head knows nothing yet. Each of
        the streams in `features` [..., feature_size] weighs the same, however large it is."""
        generator = torch.Generator().manual_seed(seed)
        for weight in (parameter for parameter in self.parameters() if parameter.dim() > 1):
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)
        self.lm_head.weight.copy_(output)
        self.norm.weight.copy_(norm)
        self.norm.weight.div_((self.lm_head.weight * self.norm.weight).square().sum(1).mean().sqrt())
        streams = features.float().unflatten(-1, (len(self.config.aux_layers), -1))
        sizes = streams.square().mean(-1).sqrt().flatten(0, -2).median(0).values  # a text's first token has huge ones
        self.fc.weight.div_(sizes.repeat_interleave(self.config.target_hidden_size))
        for branch in (self.midlayer.self_attn.o_proj, self.midlayer.mlp.down_proj):
            branch.weight.mul_(0.5)

    def chains(self, features: Tensor) -> "Chains":
        """Of all roots of texts [B, T, feature_size]."""
        return Chains(self, features)

    def logits(self, hidden: Tensor) -> Tensor:
        """What `Chains.step` gave, [..., hidden] -> fp32 [..., draft_vocab_size]."""
        return self.lm_head(self.norm(hidden)).float()


class Chains:
    """`hidden` [B, T, hidden]: of each root, what goes in with its next token."""

    def __init__(self, head: DraftHead, features: Tensor) -> None:
        self._head, self.hidden = head, head.fc(features).float()
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def step(self, embedded: Tensor) -> Tensor:
        """Of each root its next token, [B, T, hidden] -> the new `hidden`."""
        layer = self._head.midlayer
        normed = torch.cat((layer.input_layernorm(embedded), layer.hidden_norm(self.hidden)), -1)
        x = self.hidden + layer.self_attn.o_proj(self._attend(normed))
        self.hidden = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.hidden

    def _attend(self, x: Tensor) -> Tensor:
        """[B, T, 2 hidden] -> [B, T, heads * head_dim]."""
        attention, turn = self._head.midlayer.self_attn, len(self._keys)
        q = self._rotated(attention.q_proj(x), turn).transpose(1, 2)
        self._keys.append(self._shared(self._rotated(attention.k_proj(x), turn)))
        self._values.append(self._shared(self._heads(attention.v_proj(x))))
        out = self._attend_chain(q) if turn else self._attend_features(q)
        return out.transpose(1, 2).flatten(2)

    def _attend_features(self, q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, self._keys[0], self._values[0], is_causal=True)

    def _attend_chain(self, q: Tensor) -> Tensor:
        """[B, heads, T, head_dim]: one softmax over the features up to the root and the root's own chain."""
        length, scale = q.shape[2], q.shape[3] ** -0.5
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        of_features = (q @ self._keys[0].mT).masked_fill(future, float("-inf"))
        of_chain = [(q * key).sum(-1, keepdim=True) for key in self._keys[1:]]
        weights = (torch.cat((of_features, *of_chain), -1).float() * scale).softmax(-1).to(q.dtype)
        out = weights[..., :length] @ self._values[0]
        for turn, value in enumerate(self._values[1:]):
            out = out + weights[..., length + turn, None] * value
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, n * head_dim] -> [B, T, n, head_dim]."""
        return x.unflatten(-1, (-1, self._head.config.layer.head_dim))

    def _rotated(self, x: Tensor, turn: int) -> Tensor:
        """As `_heads`, at the positions of this turn."""
        return rotate(self._heads(x), *self._head.angles.at(x.shape[1], x.device, turn))

    def _shared(self, heads: Tensor) -> Tensor:
        """KV heads [B, T, n, head_dim] -> [B, heads, T, head_dim]: one for each query head."""
        return heads.transpose(1, 2).repeat_interleave(self._head.config.layer.group_size, 1)
