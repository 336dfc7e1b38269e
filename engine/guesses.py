"""Rows of a plan that guess tokens ahead (`Row.num_drafts`): what is guessed, and which draws then count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from .plan import DRAFT, Draw, Row


@dataclass(frozen=True, slots=True)
class Guesses:
    """Of one row."""

    token_ids: Sequence[int]
    """No more than its sequence's grammar allows, so perhaps fewer than its `num_drafts`."""
    draws: tuple[Draw, ...]
    """The row's, with their masks."""
    num_refused: int = 0
    """Guesses that the grammar did not allow: the first of them counts, what comes after was not tried."""

    @property
    def num_tried(self) -> int:
        return len(self.token_ids) + self.num_refused

    def reaches(self, index: int, last_drawn: int) -> bool:
        """Whether draw `index` is made, if the one before it was made and gave `last_drawn`."""
        return index == 0 or (index <= len(self.token_ids) and last_drawn == self.token_ids[index - 1])


class Proposer(Protocol):
    """Guesses on the engine's behalf."""

    def propose(self, rows: Sequence[Row]) -> list[Guesses]:
        """For rows whose guesses are `DRAFT`."""

    def retire(self, seq_id: int) -> None:
        """The sequence ends, or begins anew."""


def followed(row: Row, token_ids: Sequence[int]) -> Guesses:
    """`token_ids` as the guesses of a row, held against its grammar."""
    if row.follow is None:
        return Guesses(token_ids, row.draws)
    draws = list(row.draws)
    for index, token_id in enumerate(token_ids):
        mask = row.follow(token_id)
        if mask is None:
            return Guesses(token_ids[:index], tuple(draws), num_refused=1)
        draws[index + 1] = draws[index + 1].masked(mask)
    return Guesses(token_ids, tuple(draws))


def guesses_of(rows: Sequence[Row], proposer: Proposer | None) -> list[Guesses | None]:
    """Of each row, None where there are none. `proposer` is asked for those that are `DRAFT`."""
    asking = [row for row in rows if row.num_drafts and row.token_ids[1] == DRAFT]
    assert not asking or proposer is not None, "this engine was not given anything that guesses"
    proposed = iter(proposer.propose(asking) if asking and proposer is not None else ())
    return [
        None
        if not row.num_drafts
        else next(proposed)
        if row.token_ids[1] == DRAFT
        else followed(row, row.token_ids[1:])
        for row in rows
    ]


def with_guesses(row: Row, guesses: Guesses | None) -> Row:
    """The row as it is computed: nothing of it is `DRAFT` any more."""
    if guesses is None:
        return row
    num_drafts = len(guesses.token_ids)
    token_ids = (row.token_ids[0], *guesses.token_ids)
    return replace(row, token_ids=token_ids, draws=guesses.draws[: 1 + num_drafts], num_drafts=num_drafts)


def without_guesses(row: Row) -> Row:
    """The row as it is computed where none of its guesses are tried."""
    return with_guesses(row, Guesses((), row.draws[:1])) if row.num_drafts else row
