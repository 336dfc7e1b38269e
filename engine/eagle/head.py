"""EAGLE: a head of one decoder layer that continues the target's hidden states, and so guesses its tokens
(Li et al., EAGLE, arXiv 2401.15077; EAGLE-2, 2406.16858, the same layout; EAGLE-3, 2503.01840).

Positions. The feature of position p, from the target, goes with the *token of position p + 1*; both stand at position p
of the head's rotary embedding and KV. What comes out is the guess at the feature of p + 1: its logits are those of the
token of p + 2, and it goes back in, beside that token, at position p + 1. So the head's KV has one slot less than the
target's has tokens known; the KV of guessed features is not that of the target's, and is to be stored anew once these
are there.

Published tensors (source: SafeAILab/EAGLE eagle/model/cnets1.py for 1 and cnets.py for 3; vLLM's llama_eagle.py and
llama_eagle3.py and SGLang's llama_eagle3.py read the same), after the prefixes that weights.PREFIXES takes off:

EAGLE-1 and 2; h is the target's last residual stream after its last norm, and what comes out is such an h:
    fc.{weight [hidden, 2 hidden], bias?}               x = fc([embedding, h])
    layers.0.self_attn.{q,k,v,o}_proj.*                 x += attention(x): no norm before it
    layers.0.post_attention_layernorm.weight, layers.0.mlp.{gate,up,down}_proj.weight
    embed_tokens.weight?, lm_head.weight?               mostly the target's; logits = lm_head(x), no norm

EAGLE-3; h is fc of three of the target's residual streams side by side (by default those that enter layers 2, n / 2 and
n - 3), then the head's own stream *before* `norm`:
    fc.{weight [hidden, 3 target_hidden], bias?}
    midlayer.{input_layernorm,hidden_norm}.weight       of the embedding, of h
    midlayer.self_attn.{q,k,v}_proj.weight              [out, 2 hidden], of [norm(embedding), norm(h)]
    midlayer.self_attn.o_proj.*                         x = h + attention; norm(h) + it if norm_before_residual
    midlayer.post_attention_layernorm.weight, midlayer.mlp.{gate,up,down}_proj.weight
    norm.weight, lm_head.weight [draft_vocab_size, hidden]
    d2t [draft_vocab_size]: target id = draft id + d2t[draft id]; t2d [vocab_size]: whether a token has a draft id
    embed_tokens.weight?                                else the target's

The "speculators" format (vllm-project/speculators, models/eagle3) has `layers.0.` for `midlayer.`, may add
`input_norm.weight` before fc (norm_before_fc), and q_norm and k_norm where its layer is Qwen3's; for EAGLE-1, earlier,
`fusion_fc.` for `fc.` and `transformer.` for `layers.0.`.
"""

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from ..linear import Linear
from ..models.llama import Attention
from ..parts import Parts
from ..rope import Rope
from .config import EagleConfig
from .entry import Eagle1Entry, Eagle3Entry, Entry, TargetHead, plain_head
from .weights import LAYER, EagleWeights


class Store(Protocol):
    """Where one step's tokens go."""

    def store(self, layer_id: int, qkv: Tensor, head_norm: Any) -> object:
        """As `Attention.attend`, but only stores K and V."""


class EagleHead:
    """`layer_config` gives the sizes of its KV, `rope` its angles, `aux_layers` the target's streams that `fuse` takes
    (see EagleConfig)."""

    def __init__(
        self,
        config: EagleConfig,
        weights: EagleWeights,
        parts: Parts,
        embedding: Tensor,
        target_head: TargetHead | None = None,
        *,
        layer_id: int = 0,
    ) -> None:
        """`embedding` [vocab_size, hidden]; `target_head` where `needs_target_head`; `layer_id`: of its KV in
        attention's pool."""
        self.config, self.layer_config, self.aux_layers = config, config.layer, config.aux_layers
        self.dtype, self.embedding, self.layer_id = weights.dtype, embedding, layer_id
        self.rope = Rope(config.layer.rope, config.layer.head_dim, weights.dtype)
        self._entry = _entry(config, weights, parts, target_head)
        self._head_norm = _head_norm(config, weights, parts)
        eps, norm = config.layer.norm_eps, weights.take(f"{LAYER}.post_attention_layernorm.weight")
        self._add_out = parts.add_linear(*weights.take_linear("self_attn.o_proj"))
        self._gate_up = parts.gated_linear(norm, eps, *weights.take_linear("mlp.gate_up_proj"))
        self._add_down = parts.add_linear(*weights.take_linear("mlp.down_proj"))
        self._head = _head(config, weights, parts, target_head)
        self._target_ids = weights.target_ids()

    def fuse(self, features: Tensor) -> Tensor:
        """Residual streams of the target, not normalised, side by side in the order of `aux_layers`
        [T, config.feature_size] -> what `forward` takes as `hidden`, [T, hidden]."""
        return self._entry.fuse(features)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Ids [T] -> what `forward` and `store` take, [T, hidden]."""
        return F.embedding(token_ids, self.embedding)

    def forward(self, embedded: Tensor, hidden: Tensor, attention: Attention) -> Tensor:
        """Of tokens [T, hidden], each the one *after* the position of its row of `hidden` [T, hidden], which `fuse` or
        `forward` gave -> what follows, [T, hidden]: taken by `logits`, and as `hidden` with the next tokens. Stores K
        and V."""
        x, qkv = self._entry.start(embedded, hidden)
        self._add_out(x, attention.attend(self.layer_id, qkv, self._head_norm), x)
        self._add_down(x, self._gate_up(x), x)
        return x

    def store(self, embedded: Tensor, hidden: Tensor, store: Store) -> None:
        """As `forward`, but only stores K and V."""
        _, qkv = self._entry.start(embedded, hidden)
        store.store(self.layer_id, qkv, self._head_norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """What `forward` gave, [N, hidden] -> fp32 [N, vocab_size], -inf for tokens that the head cannot propose."""
        logits = self._head(hidden)
        if self._target_ids is None:
            return logits
        wide = logits.new_full((len(logits), self.layer_config.vocab_size), float("-inf"))
        return wide.index_copy_(1, self._target_ids, logits)


def needs_target_head(config: EagleConfig, weights: EagleWeights) -> bool:
    return config.version == 1 or not weights.has("lm_head.weight")


def _entry(config: EagleConfig, weights: EagleWeights, parts: Parts, target_head: TargetHead | None) -> Entry:
    if config.version == 3:
        return Eagle3Entry(config, weights, parts)
    assert target_head is not None, "EAGLE-1 reads the target's normalised states"
    return Eagle1Entry(weights, parts, target_head)


def _head_norm(config: EagleConfig, weights: EagleWeights, parts: Parts) -> object:
    if config.layer.family != "qwen3":
        return None
    norms = [weights.take(f"{LAYER}.self_attn.{name}.weight") for name in ("q_norm", "k_norm")]
    return parts.head_norm(config.layer, *norms)


def _head(config: EagleConfig, weights: EagleWeights, parts: Parts, target_head: TargetHead | None) -> Linear:
    if weights.has("lm_head.weight"):
        weight = weights.take("lm_head.weight")
    else:
        assert target_head is not None, "a head without an output layer uses the target's"
        weight = target_head.weight
    eps = config.layer.norm_eps
    return (
        plain_head(parts, weight, eps) if config.version == 1 else parts.head(weights.take("norm.weight"), eps, weight)
    )
