"""Which KV the pool of a draft model holds.

Blocks come and go without its being told, so each full one is marked with what it holds: a prefix that an earlier
sequence left behind is found again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from .plan import Row

CATCH_UP_TOKENS = 512
"""Computed of a sequence before it is guessed for; where it lacks more, it has no guesses in this step."""


@dataclass(slots=True)
class _Known:
    """Of one sequence."""

    chains: list[int] = field(default_factory=list)
    """Of each full block, a hash of all tokens up to its end."""
    num_tokens: int = 0
    """Whose KV is there and right."""
    num_marked: int = 0
    """Full blocks that were marked."""
    tried: tuple[int, list[int]] = (0, [])
    """Where the last row began, and the tokens that were then stored: the first one, and guesses."""


class DraftProgress:
    """Which KV a draft model's pool holds. Blocks come and go without its being told, so each full one is marked with
    what it holds: a prefix that an earlier sequence left behind is found again."""

    def __init__(self, num_blocks: int, block_size: int, *, num_redone: int = 0) -> None:
        """`num_redone`: tokens before a row's first that are computed with it, whether they are there or not."""
        self._block_size = block_size
        self._num_redone = num_redone
        self._marks: list[int | None] = [None] * num_blocks
        self._sequences: dict[int, _Known] = {}

    def retire(self, seq_id: int) -> None:
        self._sequences.pop(seq_id, None)

    def is_ready(self, row: Row) -> bool:
        """Everything before the row is there, or comes with it."""
        return self._sequences[row.seq_id].num_tokens >= row.start - self._num_redone

    def missing(self, row: Row) -> Row | None:
        """What is to be computed before the row, at most CATCH_UP_TOKENS of it."""
        known = self._known(row)
        first = known.num_tokens
        end = min(row.start - self._num_redone, first + CATCH_UP_TOKENS)
        return Row(row.seq_id, row.history[first:end], first, row.block_table) if first < end else None

    def computed(self, row: Row) -> None:
        """A row of `missing` is there."""
        known = self._sequences[row.seq_id]
        self._unmark(row)
        known.num_tokens += len(row.token_ids)
        self._mark(known, row.block_table)

    def guessed(self, row: Row, token_ids: Sequence[int]) -> None:
        """From the row's first token on, the KV of these was stored, right or not."""
        if token_ids:
            known = self._sequences[row.seq_id]
            known.num_tokens, known.tried = row.start, (row.start, list(token_ids))
            self._unmark(replace(row, token_ids=token_ids))

    def _known(self, row: Row) -> _Known:
        known = self._sequences.setdefault(row.seq_id, _Known())
        start, stored = known.tried
        if known.num_tokens == start:
            known.num_tokens += _common(stored, row.history[start : row.start])
            known.tried = known.num_tokens, []
        self._extend_chains(known, row)
        self._mark(known, row.block_table)
        for index in range(known.num_tokens // self._block_size, len(known.chains)):
            if known.num_tokens != index * self._block_size or not self._holds(known, row, index):
                break
            known.num_tokens += self._block_size
        return known

    def _extend_chains(self, known: _Known, row: Row) -> None:
        size = self._block_size
        for index in range(len(known.chains), row.start // size):
            before = known.chains[-1] if index else 0
            known.chains.append(hash((before, tuple(row.history[index * size : (index + 1) * size]))))

    def _holds(self, known: _Known, row: Row, index: int) -> bool:
        return self._marks[row.block_table[index]] == known.chains[index]

    def _mark(self, known: _Known, table: Sequence[int]) -> None:
        end = min(len(known.chains), known.num_tokens // self._block_size)
        for index in range(known.num_marked, end):
            self._marks[table[index]] = known.chains[index]
        known.num_marked = max(known.num_marked, end)

    def _unmark(self, row: Row) -> None:
        for block in self._blocks(row):
            self._marks[block] = None

    def _blocks(self, row: Row) -> Iterator[int]:
        size = self._block_size
        for index in range(row.start // size, -(-(row.start + len(row.token_ids)) // size)):
            yield row.block_table[index]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
