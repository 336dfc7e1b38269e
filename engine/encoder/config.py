"""Sizes and rules of an encoder, read from Hugging Face's config.json. No torch: launch and the router read it too."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...text.tokenizer import read_json

Family = Literal["bert", "roberta"]

ARCHITECTURES: dict[str, tuple[Family, bool]] = {
    "BertModel": ("bert", False),
    "BertForMaskedLM": ("bert", False),
    "BertForSequenceClassification": ("bert", True),
    "RobertaModel": ("roberta", False),
    "RobertaForMaskedLM": ("roberta", False),
    "RobertaForSequenceClassification": ("roberta", True),
    "XLMRobertaModel": ("roberta", False),
    "XLMRobertaForMaskedLM": ("roberta", False),
    "XLMRobertaForSequenceClassification": ("roberta", True),
}
"""What is supported: its family, and whether it has a classification head."""
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
DEFAULT_NUM_LABELS = 2


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    norm_eps: float
    num_positions: int
    """Rows of the position embedding."""
    first_position: int
    """Row of the first token's."""
    max_position_embeddings: int
    """Tokens of the longest prompt."""
    num_token_types: int
    activation: str
    num_labels: int = 0
    """Of the classification head; 0 without one."""

    generates = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], max_seq_length: int | None = None) -> "EncoderConfig":
        """Reads a parsed config.json; `max_seq_length` is what sentence-transformers cuts prompts to. Raises
        ValueError, with a sentence, on what is missing or not supported."""
        family, has_head = ARCHITECTURES[config["architectures"][0]]
        positions = config.get("position_embedding_type") or "absolute"
        activation = config.get("hidden_act", "gelu")
        if positions != "absolute":
            raise ValueError(f"position embeddings of the type {positions!r} are not supported (absolute ones are)")
        if activation not in ACTIVATIONS:
            raise ValueError(f"the activation {activation!r} is not supported ({', '.join(ACTIVATIONS)} are)")
        if config.get("quantization_config"):
            raise ValueError("quantized encoders are not supported")
        num_positions = _count(config, "max_position_embeddings")
        first = _padding_id(config) + 1 if family == "roberta" else 0
        longest = num_positions - first
        made = cls(
            family=family,
            vocab_size=_count(config, "vocab_size"),
            hidden_size=_count(config, "hidden_size"),
            intermediate_size=_count(config, "intermediate_size"),
            num_layers=_count(config, "num_hidden_layers"),
            num_heads=_count(config, "num_attention_heads"),
            norm_eps=float(config.get("layer_norm_eps", 1e-12)),
            num_positions=num_positions,
            first_position=first,
            max_position_embeddings=min(longest, max_seq_length or longest),
            num_token_types=_count(config, "type_vocab_size", 2),
            activation=activation,
            num_labels=_num_labels(config) if has_head else 0,
        )
        if made.num_labels > 1:
            raise ValueError(f"a classifier with {made.num_labels} labels is not supported (a reranker has one)")
        if made.hidden_size % made.num_heads:
            raise ValueError(f"{made.num_heads} attention heads cannot share {made.hidden_size} numbers evenly")
        return made

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def rope(self) -> None:
        """It has none: positions are embedded."""
        return None

    def layout(self, dtype: str) -> list[dict[str, Any]]:
        """It keeps no KV."""
        return []

    @property
    def num_parameters(self) -> int:
        """Of the matrices."""
        layer = self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)
        rows = self.vocab_size + self.num_positions + self.num_token_types
        return self.num_layers * layer + rows * self.hidden_size


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is that of an encoder."""
    names = config.get("architectures") or []
    return len(names) == 1 and names[0] in ARCHITECTURES


def read_max_seq_length(folder: Path) -> int | None:
    """What sentence-transformers cuts prompts to, if the folder says so. Raises ValueError."""
    path = folder / "sentence_bert_config.json"
    length = read_json(path).get("max_seq_length")
    if length is None or (isinstance(length, int) and length > 0):
        return length
    raise ValueError(f"{path}: max_seq_length is {length!r}, not a positive whole number")


def _count(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r} in config.json, not a positive whole number")
    return value


def _padding_id(config: Mapping[str, Any]) -> int:
    value = config.get("pad_token_id")
    return value if isinstance(value, int) else 1


def _num_labels(config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else _count(config, "num_labels", DEFAULT_NUM_LABELS)
