"""Hidden states to what rows add to their prompts' vectors."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .plan import Row
from .pooling import pooled_positions


def pool_rows(rows: Sequence[Row], hidden: Tensor, norm: Callable[[Tensor], Tensor]) -> dict[int, Tensor]:
    """By seq_id, fp32 [hidden_size], of rows with `pooling`. `hidden` [N, hidden_size] are the states of their
    `pooled_positions`, row after row, which `norm`, the model's last, has yet to see."""
    pooled: dict[int, Tensor] = {}
    for row in rows:
        if row.pooling is None:
            continue
        assert row.pooling != "score", "a decoder has no classification head"
        num_tokens = len(pooled_positions(row))
        own, hidden = hidden[:num_tokens], hidden[num_tokens:]
        pooled[row.seq_id] = norm(own).float().sum(0)
    return pooled
