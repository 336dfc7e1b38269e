"""The states of a sequence (one choice of one job) in the router, and its legal moves.

    QUEUED ──Reserve sent──> RESERVED ──Reserved──> PREFILLING ──Prefilled──> RECEIVING ──Tokens──> RUNNING ──> DONE
     ^  |                        |                  ^  |  |  |                   |                  ^  |         ^
     |  └──Prefill sent (P alone)┼──────────────────┘  |  |  └──Tokens (local, or before Prefilled)─┘  |         |
     |                           |                     |  └──prompt computed, no token wanted──────────┼─────────┘
     └──── declined, revoked, failed and retriable, worker lost, preempted ────────────────────────────┘

FAILED and CANCELLED can be reached from every state but the final ones. Between RESERVED and RECEIVING a prefill
worker computes the prompt; with a local prefill the decode worker does, and RECEIVING is left out. A job that wants no
token is done when its prompt is computed: on a prefill worker alone, which needs no reservation, or, where there is
none, on a decode worker alone.
"""

from enum import Enum


class State(Enum):
    QUEUED = "queued"
    RESERVED = "reserved"
    PREFILLING = "prefilling"
    RECEIVING = "receiving"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})
_ENDS = frozenset({State.FAILED, State.CANCELLED})

LEGAL_MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: _ENDS | {State.RESERVED, State.PREFILLING},
    State.RESERVED: _ENDS | {State.QUEUED, State.PREFILLING},
    State.PREFILLING: _ENDS | {State.QUEUED, State.RECEIVING, State.RUNNING, State.DONE},
    State.RECEIVING: _ENDS | {State.QUEUED, State.RUNNING},
    State.RUNNING: _ENDS | {State.QUEUED, State.DONE},
    State.DONE: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class IllegalMove(Exception):
    """A bug of the router: a sequence was to make a move that is not in the table."""


def check_move(before: State, after: State) -> None:
    """Raises IllegalMove unless the table allows it."""
    if after not in LEGAL_MOVES[before]:
        raise IllegalMove(f"{before.value} to {after.value}")
