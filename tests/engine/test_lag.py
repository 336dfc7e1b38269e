import random

import numpy as np
import pytest
from isthmus.engine.cuda.lag import Lag


def add(lag: Lag, slots: list[int], positions: list[int]) -> list[int]:
    due: list[int] = lag.add(np.array(slots, np.int32), np.array(positions, np.int32)).tolist()
    return due


def test_what_goes_on_lags_until_there_may_be_no_room() -> None:
    lag = Lag(4, length=3)
    assert add(lag, [2], [5]) == []
    for position in (10, 11):
        assert add(lag, [0, 2], [position, position - 4]) == []
    assert lag.slots.tolist() == [0, 2]
    assert add(lag, [0, 2], [12, 8]) == [0, 2], "those that have room, too: all at once"
    assert add(lag, [0], [13]) == []
    assert lag.slots.tolist() == [0, 2]
    lag.clear(np.array([0, 2]))
    assert add(lag, [0], [14]) == []
    assert add(lag, [0], [15]) == [0], "sooner than it must be, as another had lagged before"


def test_a_rewound_sequence_is_caught_up_with() -> None:
    lag = Lag(4, length=8)
    assert add(lag, [1, 3], [7, 20]) == []
    assert add(lag, [1, 3], [8, 20]) == [1, 3]
    assert add(lag, [1, 3], [9, 21]) == []


def test_only_those_that_lag_are_named_and_cleared_once() -> None:
    lag = Lag(4, length=8)
    add(lag, [1, 3], [7, 20])
    assert lag.of(np.array([0, 3])).tolist() == [3]
    lag.clear(np.array([3]))
    assert lag.of(np.array([0, 3])).tolist() == []
    assert add(lag, [3], [99]) == [], "of another sequence now"
    assert lag.slots.tolist() == [1, 3]


LENGTH = 4


@pytest.fixture
def going() -> Lag:
    """Slots 1 and 3 have gone on by one more than once."""
    lag = Lag(5, length=LENGTH)
    for step in range(2):
        assert add(lag, [1, 3], [7 + step, 20 + step]) == []
    return lag


def test_one_leaves_and_the_others_go_on(going: Lag) -> None:
    assert going.of(np.array([3])).tolist() == [3], "known, though it was told step by step"
    going.clear(np.array([3]))
    assert add(going, [1], [9]) == []
    assert going.slots.tolist() == [1]


def test_one_that_was_cleared_goes_on_where_it_was(going: Lag) -> None:
    """As though nothing had happened: it lags again, from there on."""
    going.clear(np.array([3]))
    assert going.slots.tolist() == [1]
    assert add(going, [1, 3], [9, 22]) == []
    assert going.slots.tolist() == [1, 3]
    assert add(going, [1, 3], [10, 22]) == [1, 3], "rewound"


def test_another_comes_into_the_slot_that_was_left(going: Lag) -> None:
    going.clear(np.array([3]))
    assert add(going, [1, 3], [9, 5]) == []
    assert add(going, [1, 3], [10, 6]) == []


def test_one_joins_and_one_pauses(going: Lag) -> None:
    assert add(going, [1, 2, 3], [9, 4, 22]) == []
    assert add(going, [1, 3], [10, 23]) == []
    assert going.slots.tolist() == [1, 2, 3]


def test_they_change_places(going: Lag) -> None:
    assert add(going, [3, 1], [22, 9]) == []
    assert add(going, [1, 3], [23, 10]) == [1, 3], "each would go on where the other was"


@pytest.mark.parametrize("back", [1, 2, 5])
def test_one_is_rewound(going: Lag, back: int) -> None:
    assert add(going, [1, 3], [9, 22 - back]) == [1, 3]
    assert add(going, [1, 3], [10, 23 - back]) == []


def test_no_room_is_left_to_who_goes_on(going: Lag) -> None:
    for step in range(2, LENGTH):
        assert add(going, [1, 3], [7 + step, 20 + step]) == []
    assert add(going, [1, 3], [7 + LENGTH, 20 + LENGTH]) == [1, 3]
    for step in range(LENGTH + 1, 2 * LENGTH):
        assert add(going, [1, 3], [7 + step, 20 + step]) == []
    assert add(going, [1, 3], [7 + 2 * LENGTH, 20 + 2 * LENGTH]) == [1, 3]


def test_steps_of_none_take_room_too(going: Lag) -> None:
    for _ in range(LENGTH - 2):
        assert add(going, [], []) == []
    assert add(going, [], []) == [1, 3]


def test_what_was_given_may_be_written_over() -> None:
    lag, slots, positions = Lag(4, LENGTH), np.array([1, 3], np.int32), np.array([7, 20], np.int32)
    lag.add(slots, positions)
    slots[:], positions[:] = [0, 2], [8, 21]
    assert add(lag, [1, 3], [8, 21]) == []
    assert lag.slots.tolist() == [1, 3]


class Plain:
    """The rules, sequence by sequence."""

    def __init__(self, length: int) -> None:
        self.length, self.num_steps, self.ends = length, 0, dict[int, int]()

    def add(self, slots: list[int], positions: list[int]) -> list[int]:
        given, due = dict(zip(slots, positions, strict=True)), list[int]()
        if self.num_steps == self.length or any(self.ends.get(slot, at) != at for slot, at in given.items()):
            due, self.ends, self.num_steps = sorted(self.ends), {}, 0
        self.num_steps += 1
        self.ends |= {slot: at + 1 for slot, at in given.items()}
        return due


@pytest.mark.parametrize("seed", range(20))
def test_as_sequence_by_sequence(seed: int) -> None:
    """Sequences come, leave, pause, are rewound or caught up with, and mostly go on."""
    rng, num_slots = random.Random(seed), 6
    lag, plain, positions = Lag(num_slots, LENGTH), Plain(LENGTH), dict[int, int]()
    for _ in range(400):
        if rng.random() < 0.1:
            slots = rng.sample(range(num_slots), 2)
            lag.clear(lag.of(np.array(slots)))
            for slot in slots:
                plain.ends.pop(slot, None)
        if rng.random() < 0.2:
            slot = rng.randrange(num_slots)
            if positions.pop(slot, None) is None or rng.random() < 0.3:
                positions[slot] = rng.randrange(1, 30)
        given = [slot for slot in positions if rng.random() < 0.97]
        begins = [positions[slot] for slot in given]
        assert add(lag, given, begins) == plain.add(given, begins)
        for slot in given:
            positions[slot] += 1
        if rng.random() < 0.1:
            assert lag.slots.tolist() == sorted(plain.ends)
