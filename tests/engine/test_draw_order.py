"""Where the draws of a plan are made: in its grid, then of chunks, then from shipped logits."""

from isthmus.engine.cuda.draw_order import draw_order
from isthmus.engine.cuda.grid import Grid
from isthmus.engine.cuda.step import NO_PLACE, REFUSED
from isthmus.engine.guesses import Guesses
from isthmus.engine.plan import Draw, Follow, Plan, Row, ShippedDraw


def row(seq_id: int, num_drafts: int = 0, bans: tuple[int, ...] = (), follow: Follow | None = None) -> Row:
    draws = tuple(Draw(seq_id, position, bans=bans) for position in range(1 + num_drafts))
    return Row(seq_id, tuple(range(1 + num_drafts)), 0, (seq_id,), draws, num_drafts=num_drafts, follow=follow)


def chunk(seq_id: int, num_draws: int) -> Row:
    return Row(seq_id, (1, 2), 0, (seq_id,), tuple(Draw(seq_id, 0) for _ in range(num_draws)))


SHIPPED = (ShippedDraw(None, (Draw(9, 0),)),)


def test_rows_of_one_token_stand_as_they_are() -> None:
    rows = (row(0), row(1))
    assert draw_order(Plan(0, rows, SHIPPED), [True, True], Grid.plain(rows)) == (range(3), [])


def test_chunks_come_after_the_grid_wherever_they_are_in_the_plan() -> None:
    rows = (chunk(0, 2), row(1), chunk(2, 0), chunk(3, 1))
    grid = Grid.plain([rows[1]])
    assert draw_order(Plan(0, rows, SHIPPED), [False, True, False, False], grid) == ([1, 2, 0, 3, 4], [])


def test_guesses_stand_turn_by_turn() -> None:
    rows = (row(0, 2), row(1))
    order, guesses = draw_order(Plan(0, rows, SHIPPED), [True, True], Grid.of(rows, 4, 2))
    assert order == [0, 4, 8, 1, 12]
    assert guesses == [(0, Guesses((1, 2), rows[0].draws))]


def test_guesses_without_room_have_no_place() -> None:
    rows = (row(0, 3),)
    order, _ = draw_order(Plan(0, rows), [True], Grid.of(rows, 1, 1))
    assert order == [0, 1, NO_PLACE, NO_PLACE]


def test_a_guess_that_a_grammar_refuses_is_not_drawn() -> None:
    """With bans, grammars are asked before the step."""
    rows = (row(0, 2, bans=(7,), follow=lambda token_id: None),)
    order, guesses = draw_order(Plan(0, rows), [True], Grid.of(rows, 1, 2))
    assert order == [0, REFUSED, NO_PLACE]
    assert guesses == [(0, Guesses((), rows[0].draws, num_refused=1))]
