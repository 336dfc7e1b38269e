"""All tokens of a vocabulary as bytes in one piece: what string matching over token ids reads, on any device."""

from collections.abc import Sequence

import numpy as np

from .tokenizer import Tokenizer


class VocabularyBytes:
    """Token t stands for `data[offsets[t] : offsets[t + 1]]`; `offsets` int32 [V + 1], `data` uint8.

    Special tokens stand for the text that spells them, ids without a token for nothing."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tuple(tokens)
        self.offsets = np.zeros(len(self.tokens) + 1, np.int32)
        np.cumsum([len(token) for token in self.tokens], out=self.offsets[1:])
        self.data = np.frombuffer(b"".join(self.tokens), np.uint8)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "VocabularyBytes":
        """Takes some tenths of a second for a large vocabulary."""
        return cls([tokenizer.token_bytes[token] for token in range(tokenizer.vocab_size)])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, token: int) -> bytes:
        """Nothing for an id beyond the vocabulary, which a padded model may draw."""
        return self.tokens[token] if token < len(self.tokens) else b""

    def uses_of(self, alphabet: bytes) -> np.ndarray:
        """How many bytes of each token are in `alphabet`, int64 [V]."""
        is_used = np.zeros(256, bool)
        is_used[list(alphabet)] = True
        sums = np.concatenate(([0], np.cumsum(is_used[self.data])))
        return sums[self.offsets[1:]] - sums[self.offsets[:-1]]
