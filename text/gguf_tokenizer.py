"""A `tokenizers.Tokenizer` for the vocabulary in a GGUF file.

Two tokenizer models: "gpt2" (byte-level BPE, cut first by a named pre-tokenizer) and "llama" (SentencePiece BPE with
byte fallback). Token types and defaults follow llama.cpp; the pre-tokenizers follow the tokenizer.json of the models
that carry the name. A name that is not in the table is an error: a guess would make subtly wrong ids.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split

from .tokenizer import set_bos_eos

SPACE = "▁"


class TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """What a name in `tokenizer.ggml.pre` stands for."""

    make: Callable[[], PreTokenizer]
    normalizer: Callable[[], Normalizer] | None = None
    ignore_merges: bool = False
    add_bos: bool = False


TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
LLAMA3 = WORDS + r"|\p{N}{1,3}" + SYMBOLS
QWEN2 = WORDS + r"|\p{N}" + SYMBOLS
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")


def split(*patterns: str, then: Sequence[PreTokenizer] = ()) -> PreTokenizer:
    """Cut by each pattern in turn, its matches and the text between them apart; then to bytes."""
    cuts: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, *then, ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False, use_regex=True)


def digits_gpt2() -> PreTokenizer:
    return pre_tokenizers.Sequence([Digits(individual_digits=True), gpt2()])


_DIGITS = PreTokenization(digits_gpt2)
_LLAMA3 = PreTokenization(lambda: split(LLAMA3), ignore_merges=True, add_bos=True)
PRE_TOKENIZERS = {
    "default": PreTokenization(lambda: split(*DEFAULT)),
    "gpt-2": PreTokenization(gpt2),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "qwen2": PreTokenization(lambda: split(QWEN2), normalizer=normalizers.NFC),
    "tekken": PreTokenization(lambda: split(TEKKEN), ignore_merges=True, add_bos=True),
    "deepseek-coder": PreTokenization(lambda: split(*DEEPSEEK_CODER, then=[Digits(individual_digits=True)])),
}


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """The `tokenizer.ggml.*` keys, with llama.cpp's defaults filled in."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    special_ids: dict[str, int]
    """bos, eos, unk, pad, eot, eom: those that exist."""
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool

    def special_token(self, name: str) -> str | None:
        token_id = self.special_ids.get(name)
        return None if token_id is None else self.tokens[token_id]

    def ids_of(self, *types: TokenType) -> list[int]:
        return [token_id for token_id, kind in enumerate(self.types) if kind in types]


SPECIAL_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "eom": "eom"}
SENTENCEPIECE_IDS = {"unk": 0, "bos": 1, "eos": 2}


def gguf_vocabulary(metadata: Mapping[str, Any]) -> GgufVocabulary:
    """The vocabulary in `metadata`. Raises ValueError if it is missing, inconsistent, or of an unknown kind."""
    model, pre = (str(metadata.get(f"tokenizer.ggml.{name}")) for name in ("model", "pre"))
    if model not in ("gpt2", "llama"):
        raise ValueError(f"the GGUF tokenizer model {model!r} is not supported (supported: gpt2, llama)")
    if model == "gpt2" and pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ValueError(f"the GGUF pre-tokenizer {pre!r} is not supported (supported: {known})")
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    if not tokens or len(set(tokens)) != len(tokens):
        raise ValueError("the GGUF file has no vocabulary, or one with a token twice")
    sentencepiece = model == "llama"
    return GgufVocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        types=one_a_token(metadata, "token_type", len(tokens), default=TokenType.NORMAL),
        scores=one_a_token(metadata, "scores", len(tokens), default=None if sentencepiece else 0.0),
        merges=metadata.get("tokenizer.ggml.merges", []),
        special_ids=special_ids(metadata, len(tokens), SENTENCEPIECE_IDS if sentencepiece else {}),
        add_bos=metadata.get("tokenizer.ggml.add_bos_token", sentencepiece or PRE_TOKENIZERS[pre].add_bos),
        add_eos=metadata.get("tokenizer.ggml.add_eos_token", False),
        add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", True),
    )


def one_a_token(metadata: Mapping[str, Any], name: str, num_tokens: int, default: Any) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{name}", None if default is None else [default] * num_tokens)
    if values is None or len(values) != num_tokens:
        raise ValueError(f"tokenizer.ggml.{name} of the GGUF file does not have one value for each token")
    return values


def special_ids(metadata: Mapping[str, Any], num_tokens: int, defaults: Mapping[str, int]) -> dict[str, int]:
    ids = {
        name: metadata.get(f"tokenizer.ggml.{key}_token_id", defaults.get(name)) for name, key in SPECIAL_KEYS.items()
    }
    return {name: token_id for name, token_id in ids.items() if token_id is not None and token_id < num_tokens}


def gguf_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    """The tokenizer of `vocabulary`: control and unknown tokens are special, user-defined ones are matched whole."""
    make = sentencepiece_tokenizer if vocabulary.model == "llama" else byte_level_tokenizer
    tokenizer = make(vocabulary)
    tokenizer.add_special_tokens(added_tokens(vocabulary, TokenType.CONTROL, TokenType.UNKNOWN, special=True))
    tokenizer.add_tokens(added_tokens(vocabulary, TokenType.USER_DEFINED, special=False))
    bos = vocabulary.special_token("bos") if vocabulary.add_bos else None
    eos = vocabulary.special_token("eos") if vocabulary.add_eos else None
    set_bos_eos(tokenizer, bos, eos)
    return tokenizer


def added_tokens(vocabulary: GgufVocabulary, *types: TokenType, special: bool) -> list[AddedToken]:
    return [
        AddedToken(vocabulary.tokens[token_id], special=special, normalized=False)
        for token_id in vocabulary.ids_of(*types)
    ]


def byte_level_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    if not vocabulary.merges:
        raise ValueError("the GGUF file has no tokenizer.ggml.merges")
    pre = PRE_TOKENIZERS[vocabulary.pre]
    # Unused entries pad the vocabulary to the embedding's size: no text may become one of them.
    unused = set(vocabulary.ids_of(TokenType.UNUSED))
    vocab = {token: token_id for token_id, token in enumerate(vocabulary.tokens) if token_id not in unused}
    merges = split_merges(vocabulary.merges)
    if strange := next((pair for pair in merges if not {*pair, "".join(pair)} <= vocab.keys()), None):
        raise ValueError(f"the GGUF merge {' '.join(strange)!r} is of tokens that the vocabulary lacks")
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre.ignore_merges))
    if pre.normalizer is not None:
        tokenizer.normalizer = pre.normalizer()
    tokenizer.pre_tokenizer = pre.make()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def split_merges(merges: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space:
            raise ValueError(f"the GGUF merge {merge!r} is not two tokens with a space between")
        pairs.append((left, right))
    return pairs


def sentencepiece_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    vocab = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.special_token("unk")
    merges = scored_merges(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend(SPACE)] if vocabulary.add_space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.add_space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def scored_merges(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """BPE merges of a SentencePiece vocabulary: every cut of a piece into two pieces, best score first.

    Equal scores: longer halves first, the order of transformers' SentencePiece converter.
    """
    scores = {vocabulary.tokens[i]: vocabulary.scores[i] for i in vocabulary.ids_of(TokenType.NORMAL)}
    merges = [
        (score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]
