"""Writes what a GGUF file says of its tokenizer and model as the small files of a Hugging Face model folder."""

import json
from pathlib import Path
from typing import Any

from .gguf_config import gguf_config, gguf_pooling
from .gguf_metadata import GgufHeader
from .gguf_tokenizer import GgufVocabulary, TokenType, gguf_tokenizer, gguf_vocabulary
from .pooling_config import write_pooling

END_TOKENS = frozenset(
    [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
    ]
)
"""Control tokens that end a text or a turn whatever the metadata says; llama.cpp's list, without fill-in-the-middle."""


def export_gguf(header: GgufHeader, folder: Path) -> None:
    """Write config.json, generation_config.json, tokenizer.json, tokenizer_config.json and, if there is a template,
    chat_template.jinja into `folder`, and for an embedding model how it pools. Raises ValueError on a model or
    vocabulary that is not supported."""
    config = gguf_config(header)
    vocabulary = gguf_vocabulary(header.metadata)
    gguf_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(vocabulary))
    write_json(folder / "tokenizer_config.json", tokenizer_config(vocabulary, config["max_position_embeddings"]))
    template = header.metadata.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    pooling = gguf_pooling(header)
    if pooling is not None:
        write_pooling(folder, pooling)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def generation_config(vocabulary: GgufVocabulary) -> dict[str, Any]:
    return {
        "bos_token_id": vocabulary.special_ids.get("bos"),
        "eos_token_id": end_ids(vocabulary),
        "pad_token_id": vocabulary.special_ids.get("pad"),
    }


def end_ids(vocabulary: GgufVocabulary) -> list[int]:
    """The declared eos, eot and eom, and the control tokens known to end a turn."""
    declared = {vocabulary.special_ids[name] for name in ("eos", "eot", "eom") if name in vocabulary.special_ids}
    known = {i for i in vocabulary.ids_of(TokenType.CONTROL) if vocabulary.tokens[i] in END_TOKENS}
    return sorted(declared | known)


def tokenizer_config(vocabulary: GgufVocabulary, max_length: int) -> dict[str, Any]:
    special = {f"{name}_token": vocabulary.special_token(name) for name in ("bos", "eos", "unk", "pad")}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        **{name: token for name, token in special.items() if token is not None},
    }
