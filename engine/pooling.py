"""One vector of a whole prompt, gathered from the rows that compute it. No torch: both schedulers stand on it."""

from typing import Any

import numpy as np

from ..wire.messages import Pooling
from .plan import Row


def needs_all(pooling: Pooling | None) -> bool:
    """Whether every token of the prompt must be computed: what a prefix cache holds tells nothing of hidden states."""
    return pooling in ("mean", "cls")


class Pooler:
    """The vector of one prompt of `num_tokens` tokens, while its rows are computed."""

    def __init__(self, pooling: Pooling, num_tokens: int) -> None:
        self.pooling = pooling
        self._num_tokens = num_tokens
        self._sum: np.ndarray | None = None

    def of_row(self, start: int, num_tokens: int) -> Pooling | None:
        """`Row.pooling` of the row of these tokens; None if the vector does not depend on it."""
        match self.pooling:
            case "mean":
                return "mean"
            case "cls":
                return "cls" if start == 0 else None
            case _:
                return self.pooling if start + num_tokens == self._num_tokens else None

    def add(self, part: Any) -> None:
        """What a row told, `Result.pooled`: float32."""
        self._sum = np.array(part, np.float32) if self._sum is None else self._sum + part

    def packed(self) -> bytes:
        """`messages.Pooled.values`, once all rows are computed."""
        assert self._sum is not None, "no row has told of its prompt's vector"
        vector = self._sum / np.float32(self._num_tokens) if self.pooling == "mean" else self._sum
        return vector.astype("<f4").tobytes()


def pooled_positions(row: Row) -> range:
    """Places in the row whose hidden states its `pooling` is made of."""
    num_tokens = len(row.token_ids)
    match row.pooling:
        case None:
            return range(0)
        case "mean":
            return range(num_tokens)
        case "cls":
            return range(1)
        case "last" | "score":
            return range(num_tokens - 1, num_tokens)
