"""How likely a token was: what engines measure, workers send and clients read."""

import math
from collections.abc import Collection

import numpy as np
from msgspec import Struct


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities, from fp32."""

    chosen: float
    """Of the token itself; -inf where it had no chance."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob) of the likeliest tokens, most likely first, the lowest id first where equal: as many as were
    asked for. Those without a chance are left out."""
    rank: int = 0
    """1 + the number of tokens before it in that order; 0 where it was not counted."""


def pack_logprobs(rows: Collection[TokenLogprobs], num_top: int) -> bytes:
    """Rows of at most `num_top` alternatives, each in the same number of bytes: joined bytes are joined rows."""
    table = np.zeros(len(rows), _record(num_top))
    table["chosen"], table["rank"] = [row.chosen for row in rows], [row.rank for row in rows]
    table["logprobs"] = -np.inf
    for packed, row in zip(table, rows, strict=True):
        packed["ids"][: len(row.top)] = [token_id for token_id, _ in row.top]
        packed["logprobs"][: len(row.top)] = [logprob for _, logprob in row.top]
    return table.tobytes()


def unpack_logprobs(payload: bytes, num_top: int) -> list[TokenLogprobs]:
    """What `pack_logprobs` packed. Raises ValueError where the length fits no number of rows."""
    table = np.frombuffer(payload, _record(num_top))
    columns = (table[name].tolist() for name in ("chosen", "rank", "ids", "logprobs"))
    return [
        TokenLogprobs(chosen, tuple((i, p) for i, p in zip(ids, logprobs, strict=True) if p > -math.inf), rank)
        for chosen, rank, ids, logprobs in zip(*columns, strict=True)
    ]


def _record(num_top: int) -> np.dtype[np.void]:
    fields = [("chosen", "<f4"), ("rank", "<i4"), ("ids", "<i4", (num_top,)), ("logprobs", "<f4", (num_top,))]
    return np.dtype(fields)
