"""A head in the layout that EAGLE-3 heads are published in: config.json beside model.safetensors (engine/eagle/head.py
has the names)."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...engine.config import ModelConfig
from ...engine.eagle.config import EagleConfig
from .head import DraftHead
from .texts import Text

ARCHITECTURE = "LlamaForCausalLMEagle3"
ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters")
MAPS = ("d2t", "t2d")
"""Between the draft vocabulary and the target's."""


def head_config(
    target: Mapping[str, Any],
    draft_vocab_size: int,
    aux_layers: Sequence[int] | None = None,
    intermediate_size: int | None = None,
) -> dict[str, Any]:
    """The config.json of a head for `target`, a parsed one itself, whose sizes it has where no others are given.
    `aux_layers`: the streams it reads, None for those that are usual."""
    sizes = ModelConfig.from_hf(target)
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": intermediate_size or sizes.intermediate_size,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": sizes.norm_eps,
        "max_position_embeddings": sizes.max_position_embeddings,
        "vocab_size": sizes.vocab_size,
        "draft_vocab_size": min(draft_vocab_size, sizes.vocab_size),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    config |= {name: target[name] for name in ROPE_FIELDS if target.get(name) is not None}
    return config if aux_layers is None else {**config, "eagle_aux_hidden_state_layer_ids": list(aux_layers)}


def frequent_ids(texts: Sequence[Text], count: int, vocab_size: int) -> tuple[Tensor, float]:
    """int64 [count], ascending: the tokens that answers have most of, at equal frequency those with lower ids; and the
    share of all tokens in answers that are among them."""
    counts = Counter(token for text in texts for token in text.output_ids)
    ids = sorted(range(vocab_size), key=lambda token: (-counts[token], token))[:count]
    return torch.tensor(sorted(ids)), sum(counts[token] for token in ids) / max(1, counts.total())


def save_head(folder: Path, head: DraftHead, config: Mapping[str, Any], target_ids: Tensor) -> None:
    """In bf16. Whoever loads the folder meanwhile has the old head or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in head.state_dict().items()}
    ids = target_ids.cpu()
    tensors["d2t"] = ids - torch.arange(len(ids))
    tensors["t2d"] = torch.zeros(config["vocab_size"], dtype=torch.bool).index_fill(0, ids, True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    written = folder / "model.safetensors.part"
    save_file(tensors, written, metadata={"format": "pt"})
    written.replace(folder / "model.safetensors")


def load_head(folder: Path, target: ModelConfig) -> tuple[DraftHead, Tensor]:
    """What `save_head` wrote, in fp32, and the target's ids of its draft tokens."""
    tensors = load_file(folder / "model.safetensors")
    head = DraftHead(EagleConfig.from_folder(folder, target))
    head.load_state_dict({name: value for name, value in tensors.items() if name not in MAPS})
    return head, tensors["d2t"] + torch.arange(len(tensors["d2t"]))
