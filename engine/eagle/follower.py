"""Keeps a head's cache in step with the target's: whatever tokens the target has KV of, the head has too.

That takes no attention and nothing of its MLP: K and V of a slot come from the token and the feature before it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..attention import PagedAttention
from ..plan import Row
from ..streams import Streams
from .cache import FIRST_SLOT, EagleCache
from .head import EagleHead
from .store import PagedStore


class HeadFollower:
    def __init__(self, head: EagleHead, cache: EagleCache, num_layers: int) -> None:
        """`num_layers`: the target's."""
        self.head, self.cache = head, cache
        self._stream_ids = head.aux_layers or (num_layers,)

    def streams(self) -> Streams:
        """To catch what `follow` takes of a step."""
        return Streams(self._stream_ids)

    def follow(
        self, rows: Sequence[Row], token_ids: Sequence[int], features: Tensor, num_right: Mapping[int, int]
    ) -> None:
        """A step of the target: the rows as they were computed, the tokens and features of all of them in order
        ([T], [T, feature_size]), and of rows with guesses how many were right, by seq_id. What comes after these is
        left out: later rows begin there."""
        hidden, at = self.head.fuse(features), 0
        stored, before = [], []
        for row in rows:
            count = len(row.token_ids) - row.num_drafts + num_right.get(row.seq_id, 0)
            skipped = max(0, FIRST_SLOT - row.start)
            if count > skipped:
                tokens = token_ids[at + skipped : at + count]
                stored.append(Row(row.seq_id, tokens, row.start + skipped, row.block_table))
                before.append(self._before(row, hidden[at : at + count]))
            self.cache.keep(row.start, hidden[at : at + count], row.block_table)
            at += len(row.token_ids)
        if stored:
            self._store(stored, torch.cat(before))

    def forward(self, rows: Sequence[Row], hidden: Tensor) -> Tensor:
        """Of one token each, with the feature before it, [N, hidden] -> what follows, see EagleHead.forward. Stores
        its KV."""
        layer = self.head.layer_config
        assert all(len(row.token_ids) == 1 for row in rows), "several tokens would be masked as if slot 0 were there"
        attention = PagedAttention(
            self.cache.kv, rows, num_heads=layer.num_heads, windows=layer.windows, rope=self.head.rope
        )
        return self.head.forward(self._embedded(rows), hidden, attention)

    def _before(self, row: Row, hidden: Tensor) -> Tensor:
        """The hidden state before each token of a row whose own are `hidden`, but for the sequence's first token.
        Where the one before the row is gone, a zero stands for it: later guesses see one token a little wrong."""
        if row.start < FIRST_SLOT:
            return hidden[:-1]
        known = self.cache.hidden_at(row.start - 1, row.block_table)
        first = torch.zeros_like(hidden[0]) if known is None else known
        return torch.cat((first[None], hidden[:-1]))

    def _store(self, rows: Sequence[Row], hidden: Tensor) -> None:
        store = PagedStore(self.cache.kv, rows, num_heads=self.head.layer_config.num_heads, rope=self.head.rope)
        self.head.store(self._embedded(rows), hidden, store)

    def _embedded(self, rows: Sequence[Row]) -> Tensor:
        return self.head.embed(torch.tensor([token for row in rows for token in row.token_ids]))
