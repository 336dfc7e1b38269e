"""A backlog of tokens, joined before it becomes text."""

from isthmus.router.job import NewTokens
from isthmus.router.text_stream import together


def test_what_came_alone_stays() -> None:
    alone = [NewTokens(3, (1, 2))]
    assert together(alone) is alone
    assert together([]) == []


def test_each_choice_is_joined_in_order() -> None:
    arrived = [
        NewTokens(1, (10,)),
        NewTokens(0, (20, 21)),
        NewTokens(1, (11,)),
        NewTokens(0, (22,), "stop", 22),
        NewTokens(1, (12,), "length"),
    ]
    assert together(arrived) == [NewTokens(1, [10, 11, 12], "length"), NewTokens(0, [20, 21, 22], "stop", 22)]


def test_a_choice_that_came_once_is_not_copied() -> None:
    arrived = [NewTokens(0, (1,)), NewTokens(1, (2,))]
    assert all(joined is new for joined, new in zip(together(arrived), arrived, strict=True))
