"""How often guesses are taken to be right, after some were tried."""

import random

import pytest
from isthmus.decode.acceptance import BOUNDS, FIRST_RATE, GENERAL, OWN, Acceptance


def test_nothing_known() -> None:
    assert Acceptance().rate == FIRST_RATE
    assert Acceptance(Acceptance()).rate == pytest.approx(FIRST_RATE)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("num_drafts", [1, 4, 16])
def test_it_settles_on_the_share_of_guesses_that_are_right(rate: float, num_drafts: int) -> None:
    """But for what was expected beforehand. A guess is judged only if those before it were right, so long rows do not
    make it look worse."""
    rng, acceptance, seen = random.Random(1), Acceptance(), []
    for _ in range(3000):
        right = [rng.random() < rate for _ in range(num_drafts)]
        acceptance.learn(num_drafts, next((i for i, one in enumerate(right) if not one), num_drafts))
        seen.append(acceptance.rate)
    num_judged = (1 - rate**num_drafts) / (1 - rate) / (1 - GENERAL.decay)
    expected = (num_judged * rate + GENERAL.prior_weight * FIRST_RATE) / (num_judged + GENERAL.prior_weight)
    assert sum(seen[200:]) / len(seen[200:]) == pytest.approx(expected, abs=0.03)


def test_it_forgets() -> None:
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.learn(4, 4)
    assert acceptance.rate > 0.9
    for _ in range(100):
        acceptance.learn(4, 0)
    assert acceptance.rate < 0.5
    for _ in range(100):
        acceptance.learn(4, 0)
    assert acceptance.rate < 0.2


def test_it_stays_within_bounds() -> None:
    always, never = Acceptance(), Acceptance()
    for _ in range(1000):
        always.learn(16, 16)
        never.learn(16, 0)
    assert BOUNDS[0] <= never.rate < FIRST_RATE < always.rate <= BOUNDS[1]


def test_a_new_sequence_expects_what_came_of_others() -> None:
    general = Acceptance()
    first = Acceptance(general)
    for _ in range(50):
        first.learn(4, 0)
    assert general.rate < 0.2
    second = Acceptance(general)
    assert second.rate == general.rate
    for _ in range(10):
        second.learn(4, 4)
    assert second.rate > 0.8
    assert first.rate < general.rate < second.rate


def test_surer_guesses_are_expected_to_be_right_as_often_at_least() -> None:
    general, sure, unsure = Acceptance(), Acceptance(), Acceptance()
    for _ in range(50):
        sure.learn(4, 4)
        unsure.learn(4, 0)
    assert Acceptance(general, sure).rate == pytest.approx(sure.rate)
    assert Acceptance(general, unsure).rate == pytest.approx(general.rate)
    learning = Acceptance(general, sure)
    for _ in range(50):
        learning.learn(4, 0)
    num_judged = (1 - OWN.decay**50) / (1 - OWN.decay)
    assert learning.rate == pytest.approx(sure.rate * OWN.prior_weight / (num_judged + OWN.prior_weight))
    assert sure.rate > 0.9, "they are not held against the others"


def test_of_less_sure_guesses_only_what_was_judged_counts() -> None:
    """Else a sequence would go on expecting what others had not found out when it began."""
    general, generally_less_sure = Acceptance(), Acceptance()
    less_sure = Acceptance(generally_less_sure)
    surer = Acceptance(general, less_sure)
    assert surer.rate == pytest.approx(FIRST_RATE)
    for _ in range(50):
        general.learn(1, 0)
    assert surer.rate == pytest.approx(general.rate)
