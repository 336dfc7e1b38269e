"""Which tokens a request lets come at all: one bit each, made once."""

from collections.abc import Iterable

import numpy as np

from ..wire.sampling import SamplingParams


def allowed_words(params: SamplingParams, vocab_size: int) -> np.ndarray | None:
    """int32 [⌈vocab / 32⌉], bit i of word i // 32 set where token i may come; None where all may.

    Raises ValueError where an id is not in the vocabulary, those of token_ban_ranges included, or no token is left."""
    check_ids("token_ban_ranges", [token for one in params.token_ban_ranges for token in one.tokens], vocab_size)
    if not (params.allowed_token_ids or params.custom_token_bans):
        return None
    for name in ("allowed_token_ids", "custom_token_bans"):
        check_ids(name, getattr(params, name), vocab_size)
    allowed = np.zeros(-(-vocab_size // 32) * 32, dtype=bool)
    allowed[list(params.allowed_token_ids) or slice(vocab_size)] = True
    allowed[list(params.custom_token_bans)] = False
    if not allowed.any():
        raise ValueError("allowed_token_ids and custom_token_bans leave no token")
    return np.packbits(allowed, bitorder="little").view(np.int32)


def check_ids(what: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raises ValueError."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{what} {token} is not in the vocabulary of {vocab_size} tokens")
