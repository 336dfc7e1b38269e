import random

import numpy as np
import pytest
from isthmus.engine.cuda.lag import Lag

LENGTH = 4


def add(lag: Lag, *slots: int) -> list[int]:
    due: list[int] = lag.add(np.array(slots, np.int32)).tolist()
    return due


def test_what_goes_on_lags_until_there_may_be_no_room() -> None:
    lag = Lag(4, length=3)
    assert add(lag, 2) == []
    for _ in range(2):
        assert add(lag, 0, 2) == []
    assert lag.slots.tolist() == [0, 2]
    assert add(lag, 0, 2) == [0, 2], "those that have room, too: all at once"
    assert add(lag, 0) == []
    assert lag.slots.tolist() == [0, 2]
    lag.clear(np.array([0, 2]))
    assert add(lag, 0) == []
    assert add(lag, 0) == [0], "sooner than it must be, as another had lagged before"


def test_only_those_that_lag_are_named_and_cleared_once() -> None:
    lag = Lag(4, length=8)
    add(lag, 1, 3)
    assert lag.of(np.array([0, 3])).tolist() == [3]
    lag.clear(np.array([3]))
    assert lag.of(np.array([0, 3])).tolist() == []
    assert add(lag, 3) == []
    assert lag.slots.tolist() == [1, 3]


def test_steps_of_none_take_room_too() -> None:
    lag = Lag(4, LENGTH)
    add(lag, 1, 3)
    for _ in range(LENGTH - 1):
        assert add(lag) == []
    assert add(lag) == [1, 3]


class Plain:
    """The rules, sequence by sequence."""

    def __init__(self, length: int) -> None:
        self.length, self.num_steps, self.slots = length, 0, set[int]()

    def add(self, slots: list[int]) -> list[int]:
        due = list[int]()
        if self.num_steps == self.length:
            due, self.slots, self.num_steps = sorted(self.slots), set(), 0
        self.num_steps += 1
        self.slots |= {*slots}
        return due


@pytest.mark.parametrize("seed", range(20))
def test_as_sequence_by_sequence(seed: int) -> None:
    """Sequences come, leave, pause or are caught up with, and mostly go on."""
    rng, num_slots = random.Random(seed), 6
    lag, plain, going = Lag(num_slots, LENGTH), Plain(LENGTH), set[int]()
    for _ in range(400):
        if rng.random() < 0.1:
            slots = rng.sample(range(num_slots), 2)
            lag.clear(lag.of(np.array(slots)))
            plain.slots -= {*slots}
        if rng.random() < 0.2:
            going ^= {rng.randrange(num_slots)}
        given = [slot for slot in going if rng.random() < 0.97]
        assert add(lag, *given) == plain.add(given)
        if rng.random() < 0.1:
            assert lag.slots.tolist() == sorted(plain.slots)
