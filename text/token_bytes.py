"""The bytes each token id stands for: what the tokenizer's decoder makes of it, before bytes become characters.

Knows the two decoders that language models use: byte-level (GPT-2, Llama 3, Qwen, …) and SentencePiece with byte
fallback (Llama 2, Mistral, …). With bytes in hand, text can be decoded as it comes, in constant time a token. And those
of encoders, WordPiece (BERT) and Metaspace (XLM-RoBERTa), whose tokens are only shown: WordPiece's clean-up of
punctuation is left out.
"""

import codecs
import json
import re
from typing import Any

from tokenizers import Tokenizer

FALLBACK_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
REPLACE_EACH_BYTE = "isthmus.replace_each_byte"


def replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Decoding error handler: one U+FFFD for each undecodable byte, as the ByteFallback decoder does."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(REPLACE_EACH_BYTE, replace_each_byte)


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_LEVEL = byte_level_alphabet()


class TokenBytes:
    """`table[token_id] -> bytes`, filled as ids are asked for; an id outside the vocabulary stands for nothing.

    `strip_left` spaces are dropped from the beginning of a text; `errors` names the handler for invalid UTF-8.
    Raises ValueError for a decoder of another kind.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        steps = decoder_steps(tokenizer)
        self._byte_level = [step["type"] for step in steps] == ["ByteLevel"]
        self._continued = steps[0]["prefix"] if steps[0]["type"] == "WordPiece" else None
        if self._byte_level:
            self.errors, self.strip_left = "replace", 0
            return
        if steps[0]["type"] == "Metaspace":
            steps = [{"type": "Replace", "pattern": {"String": steps[0]["replacement"]}, "content": " "}]
        self._replace = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]
        self._byte_fallback = any(step["type"] == "ByteFallback" for step in steps)
        self.errors = REPLACE_EACH_BYTE
        is_shown = "Fuse" not in [step["type"] for step in steps]
        self.strip_left = 1 if is_shown else sum(step["start"] for step in steps if step["type"] == "Strip")

    def __getitem__(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            token = self._tokenizer.id_to_token(token_id)
            known = self._known[token_id] = b"" if token is None else self._bytes_of(token)
        return known

    def _bytes_of(self, token: str) -> bytes:
        if self._byte_level:
            try:
                return bytes([BYTE_LEVEL[character] for character in token])
            except KeyError:  # an added token with characters that stand for no byte is plain text
                return token.encode()
        if self._continued is not None:
            return (token.removeprefix(self._continued) if token.startswith(self._continued) else f" {token}").encode()
        for pattern, content in self._replace:
            token = token.replace(pattern, content)
        byte = FALLBACK_BYTE.fullmatch(token) if self._byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else token.encode()


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The decoder's steps as tokenizer.json spells them, checked to be of a kind that `TokenBytes` reproduces."""
    if tokenizer.decoder is None:
        raise ValueError("the tokenizer has no decoder")
    decoder = json.loads(tokenizer.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    sentencepiece = "Fuse" in kinds and all(is_sentencepiece_step(step) for step in steps)
    if kinds not in (["ByteLevel"], ["WordPiece"], ["Metaspace"]) and not sentencepiece:
        raise ValueError(f"the tokenizer's decoder ({', '.join(kinds)}) is not supported")
    return steps


def is_sentencepiece_step(step: dict[str, Any]) -> bool:
    match step:
        case {"type": "ByteFallback" | "Fuse"} | {"type": "Replace", "pattern": {"String": str()}}:
            return True
        case {"type": "Strip", "content": " ", "stop": 0}:
            return True
    return False
