"""Draws that follow each other in one step: each is made only if those before it gave what was guessed.

They are made one of each chain at a time, so that sampling takes in no token that does not come: nothing has to be
undone, whatever the samplers are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..wire.logprobs import TokenLogprobs
from .guesses import Guesses
from .plan import NOT_DRAWN, NOT_TRIED, Draw, Result, Row, ShippedDraw
from .sampler import Sampler

Drawn = tuple[int, TokenLogprobs | None, bytes]
"""A token, how likely it was where that is asked, the sampler's state after it."""


@dataclass(frozen=True, slots=True)
class Chain:
    draws: tuple[Draw, ...]
    first: int
    """Row of logits of the first draw; the others' follow."""
    guesses: Guesses | None = None

    def reaches(self, index: int, last_drawn: int) -> bool:
        """Whether draw `index` is made, after the one before it gave `last_drawn`."""
        return self.guesses is not None and self.guesses.reaches(index, last_drawn)


def num_logits(row: Row) -> int:
    """Positions at the row's end whose logits are needed."""
    return 1 + row.num_drafts if row.draws or row.keep_logits else 0


def chains_of(rows: Sequence[Row], guesses: Sequence[Guesses | None], shipped: Sequence[ShippedDraw]) -> list[Chain]:
    """`rows` as computed, with logits for `num_logits` of each, then a row for each of `shipped`."""
    chains, first = [], 0
    for row, guessed in zip(rows, guesses, strict=True):
        parts = [row.draws] if guessed is not None else [(draw,) for draw in row.draws]
        chains += [Chain(draws, first, guessed) for draws in parts]
        first += num_logits(row)
    for index, part in enumerate(shipped):
        chains += [Chain((draw,), first + index) for draw in part.draws]
    return chains


def draw_chains(sampler: Sampler, logits: Tensor, chains: Sequence[Chain]) -> list[list[Drawn]]:
    """What each chain gave, as far as it was drawn."""
    drawn: list[list[Drawn]] = [[] for _ in chains]
    alive, turn = list(range(len(chains))), 0
    while alive:
        index = [chains[i].first + turn for i in alive]
        samples = sampler.sample(
            logits if index == list(range(len(logits))) else logits[index], [chains[i].draws[turn] for i in alive]
        )
        for i, *one in zip(alive, samples.token_ids.tolist(), samples.logprobs, samples.states, strict=True):
            drawn[i].append((one[0], one[1], one[2]))
        turn += 1
        alive = [i for i in alive if chains[i].reaches(turn, drawn[i][-1][0])]
    return drawn


def to_result(chains: Sequence[Chain], drawn: Sequence[Sequence[Drawn]], num_planned: Sequence[int]) -> Result:
    """Of chains for which so many draws were planned."""
    flat: list[Drawn] = []
    for chain, made, count in zip(chains, drawn, num_planned, strict=True):
        num_tried = 1 if chain.guesses is None else 1 + chain.guesses.num_tried
        flat += made
        flat += [(NOT_DRAWN, None, b"")] * (num_tried - len(made)) + [(NOT_TRIED, None, b"")] * (count - num_tried)
    return Result([one[0] for one in flat], {}, [one[1] for one in flat], [one[2] for one in flat])
