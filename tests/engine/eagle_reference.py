"""Random EAGLE checkpoints in published layouts, and what they compute: plain torch in fp64, whole sequences, no pages.

Written from the papers and EAGLE's own code, by published tensor names; shares nothing with engine/eagle.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
INNER, VOCAB_SIZE, TARGET_HIDDEN = 96, 320, 64
LAYER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "vocab_size": VOCAB_SIZE,
    "model_type": "llama",
}
OWN: dict[str, Any] = {**LAYER, "architectures": ["LlamaForCausalLM"]}


@dataclass
class Checkpoint:
    """`config` is its config.json, `prefix` that of its layer's tensors."""

    config: dict[str, Any]
    version: int
    prefix: str
    hidden: int = 64
    draft_vocab_size: int = VOCAB_SIZE
    fc: str = "fc"
    biases: tuple[str, ...] = ()
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        for name, shape in self.shapes().items():
            noise = torch.randn(shape, generator=generator)
            is_norm = name.endswith("norm.weight")
            self.tensors[name] = 1 + 0.3 * noise if is_norm else noise * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        if self.draft_vocab_size < VOCAB_SIZE:
            ids = torch.randperm(VOCAB_SIZE, generator=generator)[: self.draft_vocab_size].sort().values
            self.tensors["d2t"] = ids - torch.arange(self.draft_vocab_size)
            self.tensors["t2d"] = torch.zeros(VOCAB_SIZE, dtype=torch.bool).index_fill(0, ids, True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, into = self.hidden, self.hidden * (2 if self.version == 3 else 1)
        heads, kv_heads = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (heads, into),
            "self_attn.k_proj.weight": (kv_heads, into),
            "self_attn.v_proj.weight": (kv_heads, into),
            "self_attn.o_proj.weight": (hidden, heads),
            "mlp.gate_proj.weight": (INNER, hidden),
            "mlp.up_proj.weight": (INNER, hidden),
            "mlp.down_proj.weight": (hidden, INNER),
            "post_attention_layernorm.weight": (hidden,),
        }
        if self.version == 3:
            layer |= {"input_layernorm.weight": (hidden,), "hidden_norm.weight": (hidden,)}
        shapes = {f"{self.prefix}.{name}": shape for name, shape in layer.items()}
        shapes[f"{self.fc}.weight"] = (hidden, 3 * TARGET_HIDDEN if self.version == 3 else 2 * hidden)
        if self.version == 3:
            shapes["norm.weight"] = (hidden,)
        shapes |= {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in self.biases}
        return shapes | self.extra

    def save(self, folder: Path, *, pickled: bool = False) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        if pickled:
            torch.save(self.tensors, folder / "pytorch_model.bin")
        else:
            save_file(self.tensors, folder / "model.safetensors")
        return folder


LM_HEAD = {"lm_head.weight": (200, 64)}
SPECULATORS_3 = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "draft_vocab_size": 200,
    "norm_before_residual": True,
    "transformer_layer_config": LAYER,
}


def checkpoints() -> dict[str, Checkpoint]:
    eagle3 = {**OWN, "draft_vocab_size": 200}
    narrow = {**LAYER, "hidden_size": 48}
    qkv = tuple(f"layers.0.self_attn.{name}_proj" for name in "qkv")
    qwen3 = {"layers.0.self_attn.q_norm.weight": (HEAD_DIM,), "layers.0.self_attn.k_norm.weight": (HEAD_DIM,)}
    return {
        "eagle": Checkpoint({**OWN, "bias": False}, 1, "layers.0"),
        "eagle, biases, own embedding": Checkpoint(
            {**OWN, "qkv_bias": True},
            1,
            "layers.0",
            biases=("fc", *qkv),
            extra={"embed_tokens.weight": (VOCAB_SIZE, 64)},
        ),
        "eagle of speculators": Checkpoint(
            {"speculators_model_type": "eagle", "fusion_bias": True, "transformer_layer_config": LAYER},
            1,
            "transformer",
            fc="fusion_fc",
            biases=("fusion_fc",),
        ),
        "eagle3": Checkpoint(eagle3, 3, "midlayer", draft_vocab_size=200, extra=LM_HEAD),
        "eagle3, the target's output layer": Checkpoint(
            {**OWN, "architectures": ["LlamaForCausalLMEagle3"], "rope_theta": 500000.0}, 3, "midlayer"
        ),
        "eagle3 of speculators": Checkpoint(SPECULATORS_3, 3, "layers.0", draft_vocab_size=200, extra=LM_HEAD),
        "eagle3, narrower, norm before fc": Checkpoint(
            {**SPECULATORS_3, "transformer_layer_config": narrow, "norm_before_fc": True, "target_hidden_size": 64},
            3,
            "layers.0",
            hidden=48,
            draft_vocab_size=200,
            extra={
                "lm_head.weight": (200, 48),
                "embed_tokens.weight": (VOCAB_SIZE, 48),
                "input_norm.weight": (3 * TARGET_HIDDEN,),
            },
        ),
        "eagle3 of qwen3": Checkpoint(
            {**SPECULATORS_3, "transformer_layer_config": {**LAYER, "model_type": "qwen3"}},
            3,
            "layers.0",
            draft_vocab_size=200,
            extra={**LM_HEAD, **qwen3},
        ),
    }


class Reference:
    """`target`: the target's embed, norm and lm_head."""

    def __init__(self, checkpoint: Checkpoint, target: Mapping[str, Tensor]) -> None:
        self.version, self.prefix, self.fc = checkpoint.version, checkpoint.prefix, checkpoint.fc
        self.tensors = {name: tensor.double() for name, tensor in checkpoint.tensors.items() if name != "t2d"}
        self.target = {name: tensor.double() for name, tensor in target.items()}
        self.theta = checkpoint.config.get("rope_theta", 10000.0)
        self.norm_before_residual = checkpoint.config.get("norm_before_residual", False)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def of_layer(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{self.prefix}.{name}", x)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return self.norm(x, self.tensors[f"{self.prefix}.{name}.weight"])

    def fuse(self, features: Tensor) -> Tensor:
        if self.version == 1:
            return self.norm(features.double(), self.target["norm"])
        features = features.double()
        if "input_norm.weight" in self.tensors:
            features = self.norm(features, self.tensors["input_norm.weight"])
        return self.linear(self.fc, features)

    def forward(self, token_ids: Tensor, hidden: Tensor) -> Tensor:
        """Of a whole sequence from position 0 on: [T], [T, hidden] -> [T, hidden]."""
        embedded = self.tensors.get("embed_tokens.weight", self.target["embed"])[token_ids]
        if self.version == 1:
            residual = into = self.linear(self.fc, torch.cat((embedded, hidden), -1))
        else:
            normed = self.layer_norm("hidden_norm", hidden)
            into = torch.cat((self.layer_norm("input_layernorm", embedded), normed), -1)
            residual = normed if self.norm_before_residual else hidden
        x = residual + self.of_layer("self_attn.o_proj", self.attention(into))
        inner = self.layer_norm("post_attention_layernorm", x)
        gate = self.of_layer("mlp.gate_proj", inner)
        return x + self.of_layer("mlp.down_proj", gate * gate.sigmoid() * self.of_layer("mlp.up_proj", inner))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(name, x) for name in "qkv")
        k, v = (part.repeat_interleave(HEADS // KV_HEADS, 0) for part in (k, v))
        scores = q @ k.mT / HEAD_DIM**0.5
        scores.masked_fill_(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def heads(self, name: str, x: Tensor) -> Tensor:
        """[heads, T, head_dim]; Q and K normalised, where they are, and rotated."""
        heads = self.of_layer(f"self_attn.{name}_proj", x).unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1)
        weight = self.tensors.get(f"{self.prefix}.self_attn.{name}_norm.weight")
        if weight is not None:
            heads = self.norm(heads, weight)
        return heads if name == "v" else self.rotated(heads)

    def rotated(self, heads: Tensor) -> Tensor:
        """Pairs (i, i + head_dim / 2) as complex numbers, turned by position · theta^(-2 i / head_dim)."""
        half = HEAD_DIM // 2
        frequencies = self.theta ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(heads.shape[1], dtype=torch.float64), frequencies)
        turned = torch.complex(heads[..., :half], heads[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), -1)

    def logits(self, hidden: Tensor) -> Tensor:
        weight = self.tensors.get("lm_head.weight", self.target["lm_head"])
        logits = (self.norm(hidden, self.tensors["norm.weight"]) if self.version == 3 else hidden) @ weight.T
        if "d2t" not in self.tensors:
            return logits
        wide = torch.full((len(hidden), VOCAB_SIZE), float("-inf"), dtype=torch.float64)
        for draft_id, offset in enumerate(self.tensors["d2t"].long().tolist()):
            wide[:, draft_id + offset] = logits[:, draft_id]
        return wide
