"""A transport in which things go wrong, as told: put around any other, it proves that nobody trusts it.

Pieces are delayed, overtake each other, come twice or not at all; an end stops for a while, or loses its connections.
With no faults it is the transport it wraps.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .transport import NO_BLOCKS, Done, Event, Failed, Piece, PoolBlocks, Receiver, Sender, Store


@dataclass(frozen=True, slots=True)
class Fate:
    """Of one piece. Pieces with different delays overtake each other."""

    delay_s: float = 0.0
    lost: bool = False
    doubled: bool = False


Fates = Callable[[str, int], Fate]
"""(transfer_id, index of the piece as it was given to `send`): a script."""


def no_faults(transfer_id: str, index: int) -> Fate:
    return Fate()


def random_fates(seed: int, *, max_delay_s: float = 0.0, loss: float = 0.0, doubling: float = 0.0) -> Fates:
    """Each piece on its own; `loss` and `doubling` are probabilities."""
    rng = random.Random(seed)

    def fate(transfer_id: str, index: int) -> Fate:
        return Fate(rng.uniform(0, max_delay_s), rng.random() < loss, rng.random() < doubling)

    return fate


@dataclass(frozen=True, slots=True)
class _Held:
    piece: Piece
    fate: Fate
    due_at: float


@dataclass(slots=True)
class _Outgoing:
    endpoint: str
    held: list[_Held] = field(default_factory=list)
    num_given: int = 0
    last: Piece | None = None
    """The last piece that was given to `send`: its tail goes with whichever is sent last."""


class FaultySender:
    """Around what `make_sender` gives. `pause`, `resume` and `disconnect` may be called from any thread."""

    def __init__(
        self,
        make_sender: Callable[[], Sender],
        fates: Fates = no_faults,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._make_sender = make_sender
        self._sender = make_sender()
        self._fates = fates
        self._clock = clock
        self._outgoing: dict[str, _Outgoing] = {}
        self._events: list[Done | Failed] = []
        self._open: set[str] = set()
        """Transfers that were begun and have not ended."""
        self._paused = False
        self._disconnecting = False

    @property
    def idle(self) -> bool:
        return not self._open

    def pause(self) -> None:
        """Nothing is sent or reported, as if the process were stopped, until `resume`."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def disconnect(self) -> None:
        """With the next poll, all connections end in the middle of whatever is on its way, which fails."""
        self._disconnecting = True

    def prepare(self, transfer_id: str, endpoint: str) -> None:
        self._open.add(transfer_id)
        self._sender.prepare(transfer_id, endpoint)

    def send(self, transfer_id: str, endpoint: str, piece: Piece) -> None:
        self._open.add(transfer_id)
        outgoing = self._outgoing.setdefault(transfer_id, _Outgoing(endpoint))
        fate = self._fates(transfer_id, outgoing.num_given)
        outgoing.num_given += 1
        outgoing.held.append(_Held(piece, fate, self._clock() + fate.delay_s))
        if piece.last:
            outgoing.last = piece
        self._release(transfer_id, outgoing)

    def abandon(self, transfer_id: str) -> None:
        self._open.discard(transfer_id)
        self._outgoing.pop(transfer_id, None)
        self._sender.abandon(transfer_id)
        self._events = [event for event in self._events if event.transfer_id != transfer_id]

    def poll(self) -> list[Done | Failed]:
        if self._paused:
            return []
        if self._disconnecting:
            self._start_over()
        for transfer_id, outgoing in list(self._outgoing.items()):
            self._release(transfer_id, outgoing)
        events, self._events = self._events + self._sender.poll(), []
        for event in events:
            self._open.remove(event.transfer_id)
            self._outgoing.pop(event.transfer_id, None)
        return events

    def close(self) -> None:
        self._sender.close()

    def _start_over(self) -> None:
        self._disconnecting = False
        self._sender.close()
        self._sender = self._make_sender()
        self._outgoing.clear()
        self._events = [Failed(transfer_id, "the connection broke") for transfer_id in sorted(self._open)]

    def _release(self, transfer_id: str, outgoing: _Outgoing) -> None:
        """Sends what is due."""
        now = self._clock()
        due = [] if self._paused else sorted((h for h in outgoing.held if h.due_at <= now), key=lambda h: h.due_at)
        for held in due:
            outgoing.held.remove(held)
            final = outgoing.last is not None and not outgoing.held
            tail = outgoing.last.tail if final and outgoing.last is not None else {}
            self._pass_on(transfer_id, outgoing.endpoint, replace(held.piece, last=final, tail=tail), held.fate)

    def _pass_on(self, transfer_id: str, endpoint: str, piece: Piece, fate: Fate) -> None:
        if piece.last:
            del self._outgoing[transfer_id]
        if fate.lost:
            if piece.last:  # the sender never learns that it was for nothing
                self._sender.abandon(transfer_id)
                self._events.append(Done(transfer_id, 0))
            return
        if fate.doubled:
            self._sender.send(transfer_id, endpoint, replace(piece, last=False, tail={}))
        self._sender.send(transfer_id, endpoint, piece)


class FaultyReceiver:
    """`pause` and `resume` may be called from any thread."""

    def __init__(self, receiver: Receiver):
        self._receiver = receiver
        self._paused = False

    @property
    def endpoint(self) -> str:
        return self._receiver.endpoint

    def pause(self) -> None:
        """Nothing is taken until `resume`."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def register(self, transfer_id: str, num_blocks: int, store: Store, blocks: PoolBlocks = NO_BLOCKS) -> None:
        self._receiver.register(transfer_id, num_blocks, store, blocks)

    def abandon(self, transfer_id: str) -> None:
        self._receiver.abandon(transfer_id)

    def poll(self) -> list[Event]:
        return [] if self._paused else self._receiver.poll()

    def close(self) -> None:
        self._receiver.close()
