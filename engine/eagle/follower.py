"""Keeps a head's cache in step with the target's: whatever tokens the target has KV of, the head has too.

That takes no attention and nothing of its MLP: K and V of a slot come from the token and the feature before it. What a
sequence's head does not need yet is left for later, and followed some tokens at once: see `HeadFollower.catch_up`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attention import PagedAttention
from ..plan import Row
from ..streams import Streams
from .cache import FIRST_SLOT, EagleCache
from .head import EagleHead
from .store import PagedStore

MAX_LATE = 64
"""Tokens of a sequence that wait to be followed."""


@dataclass(slots=True)
class _Late:
    """Consecutive tokens of one sequence, with the target's features of them."""

    start: int = 0
    token_ids: list[int] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    """[1, feature_size] each."""
    block_table: Sequence[int] = ()

    def forget_from(self, position: int) -> None:
        """These tokens were taken back."""
        count = max(0, position - self.start)
        assert count <= len(self.token_ids), "tokens follow one another"
        del self.token_ids[count:], self.features[count:]

    def add(self, row: Row, token_id: int, features: Tensor) -> None:
        if not self.token_ids:
            self.start = row.start
        self.token_ids.append(token_id)
        self.features.append(features)
        self.block_table = tuple(row.block_table)  # the scheduler's list may be shorter by the time

    def row(self, seq_id: int) -> Row:
        return Row(seq_id, self.token_ids, self.start, self.block_table)


class HeadFollower:
    def __init__(self, head: EagleHead, cache: EagleCache, num_layers: int) -> None:
        """`num_layers`: the target's."""
        self.head, self.cache = head, cache
        self._stream_ids = head.aux_layers or (num_layers,)
        self._late: dict[int, _Late] = {}
        """By seq_id."""

    def streams(self) -> Streams:
        """To catch what `follow` takes of a step."""
        return Streams(self._stream_ids)

    def follow(
        self, rows: Sequence[Row], token_ids: Sequence[int], features: Tensor, num_right: Mapping[int, int]
    ) -> None:
        """A step of the target: the rows as they were computed, the tokens and features of all of them in order
        ([T], [T, feature_size]), and of rows with guesses how many were right, by seq_id. What comes after these is
        left out: later rows begin there. A token that is drawn after, without guesses, waits."""
        kept, at = list[tuple[Row, range]](), 0
        for row in rows:
            places = range(at, at + len(row.token_ids))
            if row.seq_id in self._late:
                self._late[row.seq_id].forget_from(row.start)
            if _waits(row):
                self._late.setdefault(row.seq_id, _Late()).add(row, token_ids[at], features[at : at + 1])
            else:
                kept.append((row, places))
            at = places.stop
        if kept:
            self.catch_up(row.seq_id for row, _ in kept)
            indices = [index for _, places in kept for index in places]
            self._follow([row for row, _ in kept], [token_ids[i] for i in indices], features[indices], num_right)
        if any(len(late.token_ids) >= MAX_LATE for late in self._late.values()):
            self.catch_up()

    def catch_up(self, seq_ids: Iterable[int] | None = None) -> None:
        """With the tokens of these sequences that wait, or of all: before guesses are made of them, and before others
        may find, copy or read their blocks."""
        wanted = list(self._late) if seq_ids is None else seq_ids
        late = {seq_id: self._late.pop(seq_id) for seq_id in wanted if seq_id in self._late}
        rows = [one.row(seq_id) for seq_id, one in late.items() if one.token_ids]
        if rows:
            token_ids = [token for row in rows for token in row.token_ids]
            self._follow(rows, token_ids, torch.cat([part for one in late.values() for part in one.features]), {})

    def _follow(
        self, rows: Sequence[Row], token_ids: Sequence[int], features: Tensor, num_right: Mapping[int, int]
    ) -> None:
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


def _waits(row: Row) -> bool:
    return len(row.token_ids) == 1 and len(row.draws) == 1
