"""Small vocabularies in the form of GGUF metadata, trained on a few lines, and the model keys around them."""

import json
from functools import cache
from typing import Any

from isthmus.text.gguf_metadata import GgufHeader, TensorInfo
from isthmus.text.gguf_tokenizer import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind: it's 12345 o'clock.",
    "def main():\n    print('hello, world')\n\n\treturn 2024 - 1999  # naïve café, Straße",
    "日本語のテキストと中文文本。 Привет, мир! 🙂👍🏽 WHO'S THERE?\r\n   end   of  text",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  two leading spaces",
    "12345678 and ½ or ٣",
    "DON'T don't Don’T",
    "line\n\n\nline \n x\t\ty   ",
    "e\u0301 combining, ﬁ ligature, 한국어, 👩‍👩‍👧‍👦, \u00a0nbsp",
    "<|end|>text<|end|>",
]
SPECIAL = ["<|begin|>", "<|end|>"]
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained_byte_level(regex: str, **options: Any) -> Tokenizer:
    """A byte-level BPE tokenizer as Llama 3 and Qwen publish theirs, with a tiny vocabulary."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def metadata_of(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    """The GGUF keys of a byte-level tokenizer, as a converter would write them."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [TokenType.CONTROL if t in SPECIAL else TokenType.NORMAL for t in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": vocab["<|begin|>"],
        "tokenizer.ggml.eos_token_id": vocab["<|end|>"],
    }


@cache
def sentencepiece_metadata() -> dict[str, Any]:
    """A Llama-2-like vocabulary: <unk> <s> </s>, 256 bytes, pieces with falling scores, then single characters."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=230, show_progress=False))
    vocab = trained.get_vocab()
    pieces = sorted((p for p in vocab if len(p) > 1), key=vocab.__getitem__)
    characters = sorted({p for p in vocab if len(p) == 1 and p.isascii()} | set("".join(pieces)))
    control = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    num_pieces = len(pieces) + len(characters)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, *characters],
        "tokenizer.ggml.token_type": [*control, *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * num_pieces],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(num_pieces)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def model_metadata(arch: str = "llama", **keys: Any) -> dict[str, Any]:
    """The keys of a tiny model; `keys` replace or add, None removes. A double underscore stands for a dot."""
    values: dict[str, Any] = {
        "block_count": 2,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    values |= {name.replace("__", "."): value for name, value in keys.items()}
    present = {f"{arch}.{name}": value for name, value in values.items() if value is not None}
    return {"general.architecture": arch, **present}


def make_header(metadata: dict[str, Any], *tensors: str, vocab_size: int = 320) -> GgufHeader:
    infos = [TensorInfo("token_embd.weight", (64, vocab_size), 0, 0), *(TensorInfo(t, (64,), 0, 0) for t in tensors)]
    return GgufHeader(3, metadata, tuple(infos), 0)
