"""What steps without guesses take: of each size what was measured, and of others what lies between."""

import pytest
from isthmus.decode.plain_steps import KNOWN_SAMPLES, OLD_STEPS, PlainSteps

STALE_STEPS = 32


def measured(sizes: dict[int, float], count: int = KNOWN_SAMPLES) -> PlainSteps:
    """So many steps of each size, at step 0."""
    steps = PlainSteps()
    for size, elapsed_s in sizes.items():
        for _ in range(count):
            steps.add(size, elapsed_s, 0, STALE_STEPS)
    return steps


def test_nothing_is_known_of_few() -> None:
    assert measured({4: 1.0}, KNOWN_SAMPLES - 1).value(4, 0) is None
    assert measured({4: 1.0}).value(4, 0) == 1.0


@pytest.mark.parametrize(("size", "expected"), [(5, 1.5), (6, 2.0), (7, 2.5)])
def test_between_two_that_are_known(size: int, expected: float) -> None:
    assert measured({4: 1.0, 8: 3.0}).value(size, 0) == pytest.approx(expected)


def test_beside_one_that_is_known() -> None:
    """Of about the same size: what far larger ones take is not expected of it."""
    steps = measured({4: 1.0})
    assert [steps.value(size, 0) for size in (3, 5, 7, 8)] == [None, 1.0, 1.0, None]


def test_what_is_old_is_not_known_until_it_is_measured_again() -> None:
    steps = measured({4: 1.0})
    assert steps.value(4, OLD_STEPS) is None
    steps.add(4, 1.1, OLD_STEPS, STALE_STEPS)
    assert steps.value(4, OLD_STEPS) == 1.0, "what was measured before is no other time's"


def test_what_has_changed_is_forgotten_when_some_time_has_gone() -> None:
    steps = measured({4: 1.0})
    steps.add(4, 2.0, STALE_STEPS - 1, STALE_STEPS)
    assert steps.value(4, STALE_STEPS - 1) == 1.0, "one step was held up"
    for _ in range(KNOWN_SAMPLES):
        steps.add(4, 2.0, 2 * STALE_STEPS - 1, STALE_STEPS)
    assert steps.value(4, 2 * STALE_STEPS) == 2.0


def test_age_is_that_of_the_last_of_about_the_size() -> None:
    steps = measured({4: 1.0})
    steps.add(7, 1.0, 10, STALE_STEPS)
    assert [steps.age(size, 30) for size in (4, 5, 7, 8)] == [20, 20, 20, 30]
