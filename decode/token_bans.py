"""Tokens that a request forbids whatever was drawn so far, as words of a mask: bit i of word i // 32 is token i."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..text.grammar_compiler import Words
from ..wire.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class TokenBans:
    allowed: Words
    """Zero beyond the vocabulary."""
    not_stops: Words
    """All but the tokens that end the output."""
    min_output: int
    """Tokens before which none of those may come."""

    @classmethod
    def of(
        cls, params: SamplingParams, stop_ids: frozenset[int], eos_ids: Iterable[int], vocab_size: int
    ) -> "TokenBans":
        """`stop_ids`: end-of-sequence tokens, unless ignored, and the request's own."""
        ended = frozenset(eos_ids) - stop_ids if params.ignore_eos else frozenset()
        banned = frozenset(params.custom_token_bans) | ended
        allowed = _words_of(frozenset(params.allowed_token_ids) or None, banned, vocab_size)
        return cls(allowed, _words_of(None, stop_ids, vocab_size), params.min_tokens)

    def at(self, position: int) -> Words:
        """What the output token at `position` may be."""
        return self.allowed & self.not_stops if position < self.min_output else self.allowed


@lru_cache(64)
def _words_of(allowed: frozenset[int] | None, banned: frozenset[int], vocab_size: int) -> Words:
    """All but `banned` of `allowed` (None: of all tokens). Requests that ask for the same share one array."""
    bits = np.full(vocab_size, allowed is None)
    bits[_inside(allowed or (), vocab_size)] = True
    bits[_inside(banned, vocab_size)] = False
    words = to_words(bits)
    words.flags.writeable = False
    return words


def _inside(token_ids: Iterable[int], vocab_size: int) -> list[int]:
    return [token_id for token_id in token_ids if token_id < vocab_size]


def to_words(allowed: np.ndarray) -> Words:
    """bool [V] -> uint32 [ceil(V / 32)]."""
    packed = np.zeros(-(-len(allowed) // 32) * 4, np.uint8)
    packed[: -(-len(allowed) // 8)] = np.packbits(allowed, bitorder="little")
    return packed.view("<u4").astype(np.uint32)
