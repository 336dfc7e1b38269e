"""Where the draws of a plan are made: in its grid, turn by turn, then of chunks, then from shipped logits."""

from collections.abc import Sequence

from ..guesses import Guesses
from ..plan import Plan
from .grid import Grid
from .step import NO_PLACE, REFUSED


def draw_order(plan: Plan, is_single: Sequence[bool], grid: Grid) -> tuple[Sequence[int], list[tuple[int, Guesses]]]:
    """`Step.order` and `Step.guesses`. `is_single`: of each row of the plan, whether it is in `grid`."""
    if grid.num_turns == 1 and all(is_single) and not any(row.num_drafts for row in plan.rows):
        return range(len(plan.rows) + sum(len(part.draws) for part in plan.shipped)), []
    order: list[int] = []
    guesses: list[tuple[int, Guesses]] = []
    index, place = 0, grid.num_tokens
    for row, single in zip(plan.rows, is_single, strict=True):
        if single:
            made, guessed = grid.places(index), grid.guesses[index]
            guesses += [] if guessed is None else [(len(order), guessed)]
            index += 1
        else:
            made = range(place, place + (1 if row.num_drafts else len(row.draws)))
            place = made.stop
        refused = [REFUSED] * (guessed.num_refused if single and guessed is not None else 0)
        order += [*made, *refused, *[NO_PLACE] * (len(row.draws) - len(made) - len(refused))]
    return [*order, *range(place, place + sum(len(part.draws) for part in plan.shipped))], guesses
