"""KV within one process: the plainest transport, for tests and for faults to be added to."""

import itertools
from collections import deque
from collections.abc import Callable

from ..wire.messages import KvPiece
from .incoming import Incoming
from .transport import NO_BLOCKS, Done, Event, Failed, Piece, PoolBlocks, Store


class LoopbackReceiver:
    """`notify` is called on the sender's thread when a piece has come."""

    _open: dict[str, "LoopbackReceiver"] = {}  # noqa: RUF012 (where the senders of this process look)
    _names = itertools.count()

    def __init__(self, notify: Callable[[], None] = lambda: None):
        self.endpoint = f"loop:{next(self._names)}"
        self._notify = notify
        self._incoming = Incoming()
        self._arrived: deque[tuple[KvPiece, memoryview, list[memoryview]]] = deque()
        self._open[self.endpoint] = self

    @classmethod
    def find(cls, endpoint: str) -> "LoopbackReceiver | None":
        return cls._open.get(endpoint)

    def deliver(self, piece: KvPiece, payload: memoryview, tail: list[memoryview]) -> None:
        self._arrived.append((piece, payload, tail))
        self._notify()

    def register(self, transfer_id: str, num_blocks: int, store: Store, blocks: PoolBlocks = NO_BLOCKS) -> None:
        self._incoming.register(transfer_id, num_blocks, store)

    def abandon(self, transfer_id: str) -> None:
        self._incoming.abandon(transfer_id)

    def poll(self) -> list[Event]:
        events: list[Event] = []
        while self._arrived:
            event = self._incoming.take(*self._arrived.popleft())
            if event is not None:
                events.append(event)
        return events

    def close(self) -> None:
        del self._open[self.endpoint]


class LoopbackSender:
    def __init__(self) -> None:
        self._sent: dict[str, tuple[int, int]] = {}  # pieces, bytes
        self._failed: set[str] = set()
        self._events: list[Done | Failed] = []

    @property
    def idle(self) -> bool:
        return not self._sent and not self._events

    def prepare(self, transfer_id: str, endpoint: str) -> None:
        """Nothing to do."""

    def send(self, transfer_id: str, endpoint: str, piece: Piece) -> None:
        if transfer_id in self._failed:
            return
        receiver = LoopbackReceiver.find(endpoint)
        if receiver is None:
            self._sent.pop(transfer_id, None)
            self._failed.add(transfer_id)
            self._events.append(Failed(transfer_id, f"{endpoint} is not there", unreachable=True))
            return
        num_pieces, num_bytes = self._sent.get(transfer_id, (0, 0))
        num_pieces, num_bytes = num_pieces + 1, num_bytes + piece.num_bytes
        self._sent[transfer_id] = num_pieces, num_bytes
        header = KvPiece(
            transfer_id, piece.first_block, piece.num_blocks, num_pieces if piece.last else None, tuple(piece.tail)
        )
        payload = bytes(piece.read(piece.first_block, piece.num_blocks, None)) if piece.num_blocks else b""
        receiver.deliver(header, memoryview(payload), list(piece.tail.values()))
        if piece.last:
            del self._sent[transfer_id]
            self._events.append(Done(transfer_id, num_bytes))

    def abandon(self, transfer_id: str) -> None:
        self._sent.pop(transfer_id, None)
        self._events = [event for event in self._events if event.transfer_id != transfer_id]

    def poll(self) -> list[Done | Failed]:
        events, self._events = self._events, []
        self._failed.clear()
        return events

    def close(self) -> None:
        self._sent.clear()
