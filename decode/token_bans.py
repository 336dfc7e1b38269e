"""Tokens that a request forbids whatever was drawn so far, as words of a mask: bit i of word i // 32 is token i."""

from collections.abc import Iterable
from dataclasses import dataclass

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
        allowed = np.ones(vocab_size, bool)
        if params.allowed_token_ids:
            allowed[:] = False
            allowed[inside(params.allowed_token_ids, vocab_size)] = True
        allowed[inside(params.custom_token_bans, vocab_size)] = False
        if params.ignore_eos:
            allowed[inside(set(eos_ids) - stop_ids, vocab_size)] = False
        not_stops = np.ones(vocab_size, bool)
        not_stops[inside(stop_ids, vocab_size)] = False
        return cls(to_words(allowed), to_words(not_stops), params.min_tokens)

    def at(self, position: int) -> Words:
        """What the output token at `position` may be."""
        return self.allowed & self.not_stops if position < self.min_output else self.allowed


def inside(token_ids: Iterable[int], vocab_size: int) -> list[int]:
    return [token_id for token_id in token_ids if token_id < vocab_size]


def to_words(allowed: np.ndarray) -> Words:
    """bool [V] -> uint32 [ceil(V / 32)]."""
    packed = np.zeros(-(-len(allowed) // 32) * 4, np.uint8)
    packed[: -(-len(allowed) // 8)] = np.packbits(allowed, bitorder="little")
    return packed.view("<u4").astype(np.uint32)
