import pytest
from isthmus.router.states import FINAL, LEGAL_MOVES, IllegalMove, State, check_move


def test_every_state_has_its_moves():
    assert set(LEGAL_MOVES) == set(State)


@pytest.mark.parametrize("state", list(State))
def test_failed_and_cancelled_end_every_open_state(state):
    ends = {State.FAILED, State.CANCELLED}
    assert LEGAL_MOVES[state] == frozenset() if state in FINAL else ends <= LEGAL_MOVES[state]


@pytest.mark.parametrize("state", [State.RESERVED, State.PREFILLING, State.RECEIVING, State.RUNNING])
def test_what_a_worker_holds_can_go_back_to_the_queue(state):
    check_move(state, State.QUEUED)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (State.QUEUED, State.RUNNING),
        (State.RESERVED, State.RUNNING),
        (State.RUNNING, State.RECEIVING),
        (State.RECEIVING, State.PREFILLING),
        (State.RESERVED, State.DONE),
        (State.RECEIVING, State.DONE),
        (State.DONE, State.QUEUED),
        (State.CANCELLED, State.FAILED),
        (State.QUEUED, State.QUEUED),
    ],
)
def test_an_illegal_move_raises(before, after):
    with pytest.raises(IllegalMove):
        check_move(before, after)
