"""What guesses are expected to add, by what they added before."""

import pytest
from isthmus.decode.guess_costs import KNOWN_SAMPLES, GuessCosts, Slopes

OCTAVE = 6
"""Of 32 rows."""


def costs_of(*steps: tuple[int, float]) -> GuessCosts:
    costs = GuessCosts(OCTAVE, Slopes())
    for num_guesses, added_s in steps:
        costs.guess(num_guesses, added_s)
    return costs


def test_nothing_is_expected_where_nothing_is_known() -> None:
    assert costs_of().added_s(4) == 0.0


def test_what_is_known_lies_on_lines() -> None:
    costs = costs_of(*[(8, 1.0), (16, 2.0)] * KNOWN_SAMPLES)
    assert [costs.added_s(number) for number in (8, 12, 16)] == [1.0, 1.5, 2.0]
    assert costs.added_s(32) == pytest.approx(4.0), "one more as one more did"


@pytest.mark.parametrize("before", [[], [(4, 1.0)] * KNOWN_SAMPLES])
def test_one_step_that_was_held_up_says_no_more_than_larger_numbers_do(before: list[tuple[int, float]]) -> None:
    costs = costs_of(*before, (64, 2.0), (28, 50.0))
    assert costs.added_s(28) <= costs.added_s(64) <= 2.0
    costs = costs_of(*before, (28, 50.0), *[(28, 50.0)] * KNOWN_SAMPLES)
    assert costs.added_s(28) == 50.0, "it was not held up, it takes that long"


def test_one_step_alone_says_half() -> None:
    """The other half is what others let expect; less than that counts at once."""
    known = [(4, 1.0), (8, 1.0)] * KNOWN_SAMPLES
    assert costs_of(*known, (64, 3.0)).added_s(64) == pytest.approx(2.0)
    assert costs_of(*known, (64, 3.0), (64, 4.0)).added_s(64) == pytest.approx((1.0 + 2 * 3.0) / 3)
    assert costs_of(*known, (64, 0.5)).added_s(64) == 0.5


def test_one_more_guess_is_expected_to_add_as_much_as_one_more_of_each_row_elsewhere() -> None:
    slopes = Slopes()
    slopes.learn(1, [(1, 1.0), (4, 2.5)])
    assert slopes.value(1) == 0.5
    assert slopes.value(OCTAVE) == 0.5 / 32
    slopes.learn(4, [(8, 1.0), (16, 5.0)])
    assert (slopes.value(3), slopes.value(OCTAVE)) == (0.5 / 4, 0.5 / 4)
    only_larger = Slopes()
    only_larger.learn(OCTAVE, [(32, 1.0), (64, 33.0)])
    assert only_larger.value(1) == 1.0
