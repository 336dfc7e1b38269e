"""Attention of one step's rows over paged KV.

A row whose blocks are one ascending run reads its keys and values as a view of the pool; another gathers them first.
Only slots that hold the row's own tokens are ever read: what an unused slot contains cannot reach a result.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .kv_pool import KvPool
from .linear import is_intel
from .norm import RmsNorm
from .plan import Row
from .rope import Rope, rotate_
from .span import Span, spans_of

LONG_CONTEXT = 512
_NOTHING = torch.empty(1, 1, 1)
"""What a product is added to that only wants to be scaled: one operation instead of two."""


class PagedAttention:
    """Rotates a step's Q and K, stores K and V, layer by layer, and attends over what the pool then holds."""

    def __init__(
        self, pool: KvPool, rows: Sequence[Row], *, num_heads: int, windows: Sequence[int | None], rope: Rope
    ) -> None:
        """`windows`: the sliding window of each layer, or None."""
        self.pool, self.num_heads = pool, num_heads
        spans = spans_of(rows, pool.block_size)
        self.slots = torch.tensor([slot for span in spans for slot in span.slots(pool.block_size)])
        self.cos, self.sin = rope.at(torch.cat([torch.arange(span.start, span.end) for span in spans]))
        self.row_lengths = [span.num_tokens for span in spans]
        self.rows = [(_One if span.num_tokens == 1 else _Chunk)(pool, span, windows) for span in spans]

    def attend(self, layer_id: int, qkv: Tensor, head_norm: RmsNorm | None) -> Tensor:
        """See models.llama.Attention."""
        num_tokens, head_dim = len(qkv), self.pool.head_dim
        qkv = qkv.view(num_tokens, -1, head_dim)
        rotated = qkv[:, : self.num_heads + self.pool.num_kv_heads]
        if head_norm is not None:
            rotated.copy_(head_norm(rotated))
        rotate_(rotated, self.cos, self.sin)
        self.pool.store(layer_id, self.slots, qkv[:, self.num_heads :])
        queries = qkv[:, : self.num_heads].view(num_tokens, self.pool.num_kv_heads, -1, head_dim)
        if len(self.rows) == 1:
            return self.rows[0].attend(layer_id, queries).reshape(num_tokens, -1)
        parts = zip(self.rows, queries.split(self.row_lengths), strict=True)
        return torch.cat([row.attend(layer_id, part) for row, part in parts]).view(num_tokens, -1)


class _One:
    """A row of one token, which sees all of its keys. K and V are never repeated for the heads that share them.

    Which way is fastest was measured: in fp32 on Intel's processors those heads stand as so many queries, and K and V
    are read once; elsewhere one query a head is faster (in bf16 up to twice), until K and V are so many that in fp32
    plain products are.
    """

    def __init__(self, pool: KvPool, span: Span, windows: Sequence[int | None]) -> None:
        self.history = pool.history(span, windows)
        is_fp32 = pool.kv.dtype == torch.float32
        by_products = is_fp32 and not is_intel() and span.end >= LONG_CONTEXT
        self.run = _by_products if by_products else _grouped if is_fp32 and is_intel() else _by_head

    def attend(self, layer_id: int, queries: Tensor) -> Tensor:
        """[1, kv_heads, group, head_dim] -> the same shape."""
        return self.run(queries, *self.history(layer_id))


def _grouped(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values)


def _by_head(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    heads = queries.view(1, -1, 1, queries.shape[-1])
    return F.scaled_dot_product_attention(heads, keys, values, enable_gqa=True).view(queries.shape)


def _by_products(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    scores = torch.baddbmm(_NOTHING, queries[0], keys[0].mT, beta=0, alpha=queries.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), values[0])[None]


class _Chunk:
    """A row of several tokens, each of which sees the keys up to its own."""

    def __init__(self, pool: KvPool, span: Span, windows: Sequence[int | None]) -> None:
        self.history, self.windows = pool.history(span, windows), windows
        self.masks = {window: chunk_mask(span, window, pool.kv.dtype) for window in {*windows}}

    def attend(self, layer_id: int, queries: Tensor) -> Tensor:
        """[n, kv_heads, group, head_dim] -> the same shape."""
        group, mask = queries.shape[2], self.masks[self.windows[layer_id]]
        keys, values = (part.transpose(0, 1).expand(-1, group, -1, -1) for part in self.history(layer_id))
        queries = queries.permute(1, 2, 0, 3)
        output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None)
        return output.permute(2, 0, 1, 3)


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
