"""Attention of one step's rows over paged KV.

A row whose blocks are one ascending run reads its keys and values as a view of the pool; another gathers them first.
Only slots that hold the row's own tokens are ever read: what an unused slot contains cannot reach a result.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .kv_pool import KvPool
from .plan import Row
from .span import Span, spans_of


class PagedAttention:
    """Stores a step's new K and V, layer by layer, and attends over what the pool then holds."""

    def __init__(self, pool: KvPool, rows: Sequence[Row], *, num_heads: int, windows: Sequence[int | None]) -> None:
        """`windows`: the sliding window of each layer, or None."""
        self.pool, self.windows, self.num_heads = pool, windows, num_heads
        spans = spans_of(rows, pool.block_size)
        self.slots = torch.tensor([slot for span in spans for slot in span.slots(pool.block_size)])
        self.positions = torch.cat([torch.arange(span.start, span.end) for span in spans])
        self.rows = [_Row(pool, span) for span in spans]
        self.row_lengths = [span.num_tokens for span in spans]

    def attend(self, layer_id: int, qkv: Tensor) -> Tensor:
        """[T, heads + 2 kv_heads, head_dim], rotated -> [T, heads * head_dim]."""
        num_tokens, _, head_dim = qkv.shape
        queries, new = qkv.split((self.num_heads, qkv.shape[1] - self.num_heads), 1)
        self.pool.store(layer_id, self.slots, new)
        of_rows = queries.view(num_tokens, self.pool.num_kv_heads, -1, head_dim).split(self.row_lengths)
        window = self.windows[layer_id]
        outputs = [row.attend(layer_id, part, window) for row, part in zip(self.rows, of_rows, strict=True)]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).reshape(num_tokens, -1)


class _Row:
    """One row's attention, in all layers."""

    def __init__(self, pool: KvPool, span: Span) -> None:
        self.span = span
        self.history = pool.view(span) if span.is_run else pool.gatherer(span)
        self.attend_queries = _attend_one if span.num_tokens == 1 else self._attend_chunk
        self.masks: dict[int | None, Tensor | None] = {}

    def attend(self, layer_id: int, queries: Tensor, window: int | None) -> Tensor:
        """[n, kv_heads, group, head_dim] -> the same shape."""
        keys, values = self.history(layer_id)
        first = self.span.first_visible(window)
        if first:
            keys, values = keys[:, :, first:], values[:, :, first:]
        return self.attend_queries(queries, keys, values, window)

    def _attend_chunk(self, queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
        if window not in self.masks:
            self.masks[window] = chunk_mask(self.span, window, queries.dtype)
        mask, group = self.masks[window], queries.shape[2]
        keys, values = (part.transpose(0, 1).expand(-1, group, -1, -1) for part in (keys, values))
        queries = queries.permute(1, 2, 0, 3)
        output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None)
        return output.permute(2, 0, 1, 3)


def _attend_one(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """One token, which sees all of `keys`: the query heads that share a KV head stand as its queries, so K and V are
    read once and never repeated."""
    return F.scaled_dot_product_attention(queries, keys, values)


def chunk_mask(span: Span, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """[n, keys], 0 where a token sees a key, else -inf; None where that is the causal mask of equal lengths."""
    if span.start == 0 and (window is None or window >= span.end):
        return None
    queries = torch.arange(span.start, span.end)[:, None]
    keys = torch.arange(span.first_visible(window), span.end)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
