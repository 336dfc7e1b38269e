"""Where a step's tokens go in a head's paged KV, when nothing is asked of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kv_pool import KvPool
from ..norm import RmsNorm
from ..plan import Row
from ..rope import Rope, rotate_
from ..span import spans_of


class PagedStore:
    """See head.Store."""

    def __init__(self, pool: KvPool, rows: Sequence[Row], *, num_heads: int, rope: Rope) -> None:
        self._pool, self._num_heads = pool, num_heads
        spans = spans_of(rows, pool.block_size)
        self._slots = torch.tensor([slot for span in spans for slot in span.slots(pool.block_size)])
        self._cos, self._sin = rope.at(torch.cat([torch.arange(span.start, span.end) for span in spans]))

    def store(self, layer_id: int, qkv: Tensor, head_norm: RmsNorm | None) -> None:
        """[T, (heads + 2 kv_heads) * head_dim], overwritten. Q is rotated with K: as cheap, and one rule of norms."""
        qkv = qkv.view(len(qkv), -1, self._pool.head_dim)
        rotated = qkv[:, : self._num_heads + self._pool.num_kv_heads]
        if head_norm is not None:
            rotated.copy_(head_norm(rotated))
        rotate_(rotated, self._cos, self._sin)
        self._pool.store(layer_id, self._slots, qkv[:, self._num_heads :])
