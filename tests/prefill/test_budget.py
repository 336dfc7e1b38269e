import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.prefill.budget import split_budget, split_whole


@pytest.mark.parametrize(
    ("num_left", "budget", "grants"),
    [
        ([], 8, []),
        ([5], 8, [5]),
        ([100], 8, [8]),
        ([100, 3], 8, [5, 3]),
        ([100, 50], 8, [4, 4]),
        ([100, 50, 6], 8, [4, 0, 4]),
        ([2, 50, 6], 8, [2, 0, 6]),
        ([4, 4, 4], 8, [4, 4, 0]),
        ([100, 100], 9, [9, 0]),
    ],
)
def test_half_for_the_shortest_half_for_the_oldest(num_left: list[int], budget: int, grants: list[int]) -> None:
    assert split_budget(num_left, budget) == grants


@settings(deadline=None)
@given(st.lists(st.integers(1, 50)), st.integers(2, 60))
def test_nothing_is_wasted_and_nobody_starves(num_left: list[int], budget: int) -> None:
    grants = split_budget(num_left, budget)
    assert sum(grants) == min(budget, sum(num_left))
    assert all(0 <= grant <= left for grant, left in zip(grants, num_left, strict=True))
    if num_left:
        assert grants[0] >= min(num_left[0], budget // 2)
        shortest = num_left.index(min(num_left))
        assert grants[shortest] >= min(num_left[shortest], budget - budget // 2)


def test_a_budget_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        split_budget([1], 1)


@pytest.mark.parametrize(
    ("num_left", "budget", "grants"),
    [
        ([], 8, []),
        ([5], 8, [5]),
        ([100], 8, [100]),
        ([100, 3], 8, [100, 0]),
        ([5, 4, 3], 8, [5, 0, 3]),
        ([3, 3, 3], 8, [3, 3, 0]),
    ],
)
def test_whole_prompts_or_nothing_and_the_oldest_always(num_left: list[int], budget: int, grants: list[int]) -> None:
    assert split_whole(num_left, budget) == grants
