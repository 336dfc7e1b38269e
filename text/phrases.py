"""Strings that requests send for their samplers, in terms of tokens."""

from collections.abc import Sequence
from functools import cached_property, lru_cache

from .breakers import Breakers
from .tokenizer import Tokenizer
from .vocabulary import VocabularyBytes

CACHE_SIZE = 64
"""Clients send the same few sets of breakers again and again."""


class Phrases:
    """Of one tokenizer. What is made of a set of strings is kept for the next request with the same."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._breakers = lru_cache(CACHE_SIZE)(lambda strings: Breakers(strings, self.vocabulary))

    @cached_property
    def vocabulary(self) -> VocabularyBytes:
        return VocabularyBytes.of(self._tokenizer)

    def breakers(self, strings: Sequence[str]) -> Breakers:
        """DRY's; ValueError as theirs."""
        return self._breakers(tuple(dict.fromkeys(strings)))

    def bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Each word's tokens as it stands alone and, unless it begins with white space, after a space; those that
        differ. Raises ValueError, naming bad_words, for a word without tokens of its own."""
        spelled = [spelling for word in words for spelling in ([word] if word[:1].isspace() else [word, " " + word])]
        return tuple(dict.fromkeys(self._tokens(word) for word in spelled))

    def _tokens(self, word: str) -> tuple[int, ...]:
        try:
            ids = tuple(self._tokenizer.encode(word, add_special_tokens=False))
        except ValueError as error:
            raise ValueError(f"bad_words: {error}") from None
        is_unknown = self._unknown_id in ids and self._unknown not in word
        if not ids or is_unknown or max(ids) >= self._tokenizer.vocab_size:
            raise ValueError(f"bad_words: {word!r} cannot be written in the model's tokens")
        return ids

    @cached_property
    def _unknown_id(self) -> int | None:
        """What stands for text that no token does."""
        ids = self._tokenizer.encode(self._unknown, add_special_tokens=False) if self._unknown else []
        return ids[0] if len(ids) == 1 else None

    @property
    def _unknown(self) -> str:
        return self._tokenizer.special_tokens.get("unk_token", "")
