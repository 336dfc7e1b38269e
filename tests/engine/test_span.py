import pytest
from isthmus.engine.plan import Row
from isthmus.engine.span import Span, spans_of


def test_slots_follow_the_block_table() -> None:
    span = Span(num_tokens=5, start=2, block_ids=(7, 3))
    assert span.slots(block_size=4) == [30, 31, 12, 13, 14]
    assert span.end == 7


@pytest.mark.parametrize(
    ("blocks", "is_run"), [((5,), True), ((5, 6, 7), True), ((5, 7), False), ((6, 5), False), ((5, 5), False)]
)
def test_runs(blocks: tuple[int, ...], is_run: bool) -> None:
    assert Span(1, 0, blocks).is_run == is_run


@pytest.mark.parametrize(
    ("start", "window", "first"), [(10, None, 0), (10, 4, 7), (10, 11, 0), (10, 10, 1), (0, 1, 0), (3, 1, 3)]
)
def test_a_window_holds_the_token_and_those_before(start: int, window: int | None, first: int) -> None:
    assert Span(1, start, ()).first_visible(window) == first


def test_blocks_past_the_row_are_left_out() -> None:
    spans = spans_of([Row(1, [5, 6], 3, [4, 9, 2]), Row(2, [7], 4, range(5))], block_size=4)
    assert spans == [Span(2, 3, (4, 9)), Span(1, 4, (0, 1))]


def test_a_table_that_is_too_short_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="do not cover"):
        spans_of([Row(1, [5, 6], 3, [4])], block_size=4)
