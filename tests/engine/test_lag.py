import numpy as np
from isthmus.engine.cuda.lag import Lag


def add(lag: Lag, slots: list[int], positions: list[int]) -> list[int]:
    due: list[int] = lag.add(np.array(slots), np.array(positions)).tolist()
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
