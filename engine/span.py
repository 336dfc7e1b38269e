"""Where one row of a plan lies, in its sequence and in the pool."""

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Row


@dataclass(frozen=True, slots=True)
class Span:
    num_tokens: int
    start: int
    """Position of its first token in the sequence."""
    block_ids: tuple[int, ...]
    """The blocks that hold positions up to its last token, in order."""

    @property
    def end(self) -> int:
        """One past the position of its last token."""
        return self.start + self.num_tokens

    @property
    def is_run(self) -> bool:
        """Its blocks are neighbours in ascending order, so its slots are one range."""
        first = self.block_ids[0]
        return self.block_ids == tuple(range(first, first + len(self.block_ids)))

    def slots(self, block_size: int) -> list[int]:
        """The pool slot of each of its tokens."""
        return [
            self.block_ids[position // block_size] * block_size + position % block_size
            for position in range(self.start, self.end)
        ]

    def first_visible(self, window: int | None) -> int:
        """The lowest position that its first token sees."""
        return 0 if window is None else max(0, self.start - window + 1)


def spans_of(rows: Sequence[Row], block_size: int) -> list[Span]:
    spans = []
    for row in rows:
        num_tokens = len(row.token_ids)
        num_blocks = -(-(row.start + num_tokens) // block_size)
        assert num_tokens, "a row without tokens"
        assert len(row.block_table) >= num_blocks, "a row's blocks do not cover its tokens"
        spans.append(Span(num_tokens, row.start, tuple(row.block_table[:num_blocks])))
    return spans
