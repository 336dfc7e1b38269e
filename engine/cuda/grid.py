"""The rows of a step for which the kernels draw, as they lie on the device: token `turn` of row i at turn · stride + i.

A row without guesses has one token, so one turn. Where some have guesses, those that have fewer are filled up with
padding: then all that is drawn in one turn lies side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..guesses import Guesses, followed, with_guesses
from ..plan import DRAFT, Draw, Row

_NOTHING = Draw(-1, 0)


@dataclass(frozen=True, slots=True)
class Grid:
    rows: Sequence[Row]
    """As they are computed."""
    guesses: Sequence[Guesses | None]
    stride: int
    num_turns: int = 1
    refused: set[int] = field(default_factory=set)
    """Places of guesses of `guided` rows, after which grammars let nothing come."""

    @classmethod
    def plain(cls, rows: Sequence[Row]) -> "Grid":
        """Of rows without guesses."""
        return cls(rows, [None] * len(rows), len(rows))

    @classmethod
    def of(cls, rows: Sequence[Row], stride: int, max_drafts: int) -> "Grid":
        """Guesses beyond `max_drafts` are left out, and what grammars do not allow, except of `guided` rows. `DRAFT`
        stays until it is known."""
        guesses = [_guesses_of(row, max_drafts) for row in rows]
        computed = [with_guesses(row, guessed) for row, guessed in zip(rows, guesses, strict=True)]
        return cls(computed, guesses, stride, 1 + max_drafts)

    @property
    def num_tokens(self) -> int:
        """Padding included."""
        return self.stride * self.num_turns

    def places(self, index: int) -> range:
        """Of the tokens of row `index`, and of its draws."""
        return range(index, index + self.stride * len(self.rows[index].token_ids), self.stride)

    @property
    def asking(self) -> list[int]:
        """Rows whose guesses are `DRAFT`."""
        if self.num_turns == 1:
            return []
        return [index for index, row in enumerate(self.rows) if DRAFT in row.token_ids[1:2]]

    @property
    def has_masks(self) -> bool:
        """Of what is drawn first in its rows."""
        return any(row.draws[0].mask is not None for row in self.rows)

    @property
    def guided(self) -> list[int]:
        """Rows whose guesses are to be held against a grammar once the model computes them."""
        if self.num_turns == 1:
            return []
        return [index for index, row in enumerate(self.rows) if row.num_drafts and _is_followed_late(row)]

    @property
    def draws(self) -> list[Draw]:
        """Place by place; of no sequence where nothing is."""
        draws = [_NOTHING] * self.num_tokens
        for place, draw in self.placed:
            draws[place] = draw
        return draws

    @property
    def placed(self) -> Iterator[tuple[int, Draw]]:
        """(place, draw) of each draw, row by row."""
        for index, row in enumerate(self.rows):
            yield from zip(self.places(index), row.draws, strict=True)


def _guesses_of(row: Row, max_drafts: int) -> Guesses | None:
    if not row.num_drafts:
        return None
    token_ids = row.token_ids[1 : 1 + max_drafts]
    is_late = DRAFT in token_ids or _is_followed_late(row)
    return Guesses(token_ids, row.draws) if is_late else followed(row, token_ids)


def _is_followed_late(row: Row) -> bool:
    """Bans are told to the device together with masks, which must then be known before."""
    return row.follow is not None and not any(draw.bans for draw in row.draws)
