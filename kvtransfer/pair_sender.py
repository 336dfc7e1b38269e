"""The sending end of transports between devices: for each receiver a thread that claims, moves and announces.

    send ──> queue ──> Claim ─ ─ Granted ──> moved, a piece at a time ──> announced ──> Done

A thread, because the worker's own may wait a whole prefill step for its GPU: pieces that are ready leave meanwhile.
Pieces of one receiver move one after another, those of the oldest granted transfer first.
"""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ..wire.codec import ProtocolError
from ..wire.messages import KvPiece
from .connection import Connection, Lost
from .pair_messages import (
    Broken,
    Claim,
    Drained,
    Granted,
    GroupOffer,
    PoolOffer,
    Refused,
    Revoke,
    decode_for_sender,
    encode,
)
from .transport import Done, Failed, Piece

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
LOOK_S = 0.1
"""How often a thread that has nothing to do looks at the clock."""
CLOSE_S = 3.0


class Unreachable(Exception):
    """This endpoint can never be reached from here; the text says why."""


Reading = Callable[[], AbstractContextManager[bool]]
"""Within it the sender's blocks stay as they are, if they are wanted: that is its value."""


class Path(Protocol):
    """To one receiver's pool. Used by one thread."""

    max_piece_bytes: int

    def move(
        self, piece: Piece, header: KvPiece, block_ids: Sequence[int], reading: "Reading", *, hidden: bool
    ) -> None:
        """Moves a piece into `block_ids` of the receiver and announces it. `hidden`: more of the transfer is still
        being computed. Raises Lost."""

    def close(self) -> None: ...


class Way(Protocol):
    """A transport's way to its receivers. Used by many threads."""

    bytes_per_block: int

    def connect(self, endpoint: str) -> Connection:
        """Raises OSError."""

    def join(self, connection: Connection, offer: PoolOffer | GroupOffer, give_up: Callable[[str], None]) -> Path:
        """Raises Unreachable, or Lost. `give_up` is called, on any thread, when the receiver is gone and this thread
        may not see it for a while."""


@dataclass(slots=True)
class _Outgoing:
    pieces: deque[Piece] = field(default_factory=deque)
    claimed: bool = False
    block_ids: Sequence[int] | None = None
    """Of the receiver, once it has granted them."""
    refused: bool = False
    closed: bool = False
    num_pieces: int = 0
    num_bytes: int = 0

    @property
    def ready(self) -> bool:
        """There is a piece that may be moved, or dropped."""
        return bool(self.pieces) and (self.block_ids is not None or self.refused)


class PairSender:
    """To one receiver, for as long as it lives. `report` is called on the thread."""

    def __init__(
        self,
        endpoint: str,
        way: Way,
        report: Callable[[Done | Failed], None],
        *,
        predecessors: Iterable["PairSender"] = (),
        stalled_s: float,
    ):
        """`predecessors` are joined first: what they had mapped of receivers that are gone is closed by then."""
        self._endpoint = endpoint
        self._way = way
        self._report = report
        self._predecessors = list(predecessors)
        self._stalled_s = stalled_s
        self._outgoing: dict[str, _Outgoing] = {}
        self._changed = threading.Condition()
        self._moving: str | None = None
        """The transfer whose blocks are being read."""
        self._closing = False
        self._progress_at = 0.0
        self._reached = False
        self._error = ""
        self.ended = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="kv-pair-sender", daemon=True)
        self._thread.start()

    def send(self, transfer_id: str, piece: Piece | None) -> bool:
        """Without a piece, the transfer is claimed, for pieces to come. False if this pair has ended, and takes no
        more."""
        with self._changed:
            if self.ended:
                return False
            outgoing = self._outgoing.setdefault(transfer_id, _Outgoing())
            assert not outgoing.closed
            if piece is not None:
                outgoing.pieces.append(piece)
                outgoing.closed = piece.last
        self._wake()
        return True

    def abandon(self, transfer_id: str) -> None:
        """Waits while a piece of it is being read."""
        with self._changed:
            self._outgoing.pop(transfer_id, None)
            self._changed.wait_for(lambda: self._moving != transfer_id)

    def close(self) -> None:
        self._closing = True
        self._wake()
        self.join()

    def join(self) -> None:
        self._thread.join(CLOSE_S)

    def failure(self, transfer_id: str) -> Failed:
        """Of a transfer that this pair, which has ended, did not see to its end."""
        return Failed(transfer_id, f"{self._endpoint}: {self._error}", unreachable=not self._reached)

    def _wake(self) -> None:
        with suppress(OSError):  # it may be awake, or over
            self._wake_write.send(b"\0")

    # On the thread.

    def _run(self) -> None:
        path: Path | None = None
        connection: Connection | None = None
        error = "closed"
        try:
            for predecessor in self._predecessors:
                predecessor.join()
            connection = self._way.connect(self._endpoint)
            path = self._way.join(connection, self._offer(connection), self._give_up)
            self._reached = True
            self._progress_at = time.monotonic()
            while not (self._closing or self.ended):
                self._turn(connection, path)
        except (Lost, Unreachable, OSError, ProtocolError) as reason:
            error = str(reason)
        except Exception as reason:
            log.exception("KV to %s", self._endpoint)
            error = f"{type(reason).__name__}: {reason}"
        finally:
            self._end(error, connection, path)

    def _offer(self, connection: Connection) -> PoolOffer | GroupOffer:
        payload = connection.receive(HANDSHAKE_S)
        if payload is None:
            raise Unreachable("it offers nothing")
        match decode_for_sender(payload):
            case PoolOffer() | GroupOffer() as offer:
                return offer
            case other:
                raise Unreachable(f"{type(other).__name__} is no offer")

    def _turn(self, connection: Connection, path: Path) -> None:
        for transfer_id in self._unclaimed():
            connection.send(encode(Claim(transfer_id)))
        moved = self._move_one(connection, path)
        payload = connection.receive(0.0 if moved else LOOK_S, wake=self._wake_read.fileno())
        while payload is not None:
            self._progress_at = time.monotonic()
            self._on_message(connection, payload)
            payload = connection.receive(0.0)
        self._sleep_off()
        self._check_progress(connection)

    def _sleep_off(self) -> None:
        """Takes the wake-ups that have come."""
        with suppress(BlockingIOError):
            self._wake_read.recv(4096)

    def _check_progress(self, connection: Connection) -> None:
        """Raises Lost."""
        with self._changed:
            waits = any(o.claimed and o.block_ids is None and not o.refused for o in self._outgoing.values())
        if not waits and connection.flush():
            self._progress_at = time.monotonic()
        elif time.monotonic() - self._progress_at > self._stalled_s:
            raise Lost(f"it answered nothing for {self._stalled_s:g} s")

    def _unclaimed(self) -> list[str]:
        with self._changed:
            new = [transfer_id for transfer_id, outgoing in self._outgoing.items() if not outgoing.claimed]
            for transfer_id in new:
                self._outgoing[transfer_id].claimed = True
        return new

    def _on_message(self, connection: Connection, payload: bytes) -> None:
        """Raises ProtocolError."""
        match decode_for_sender(payload):
            case Granted(transfer_id=transfer_id, block_ids=block_ids):
                with self._changed:
                    if transfer_id in self._outgoing:
                        self._outgoing[transfer_id].block_ids = block_ids
            case Refused(transfer_id=transfer_id):
                self._drop(transfer_id)
            case Revoke(transfer_id=transfer_id):
                self._drop(transfer_id)
                connection.send(encode(Drained(transfer_id)))  # nothing is in flight on this thread
            case other:
                raise ProtocolError(f"{type(other).__name__} was not expected")

    def _drop(self, transfer_id: str) -> None:
        with self._changed:
            outgoing = self._outgoing.get(transfer_id)
            if outgoing is not None:
                outgoing.refused = True
                self._finish(transfer_id, outgoing)

    def _move_one(self, connection: Connection, path: Path) -> bool:
        """Whether there was a piece to move, or to drop."""
        with self._changed:
            transfer_id = next((each for each, outgoing in self._outgoing.items() if outgoing.ready), "")
            if not transfer_id:
                return False
            outgoing = self._outgoing[transfer_id]
            if outgoing.refused:
                self._finish(transfer_id, outgoing)
                return True
            piece, rest = outgoing.pieces.popleft().cut(path.max_piece_bytes)
            if rest is not None:
                outgoing.pieces.appendleft(rest)
        self._move(connection, path, transfer_id, outgoing, piece)
        with self._changed:
            if self._outgoing.get(transfer_id) is outgoing:
                self._finish(transfer_id, outgoing)
        return True

    def _move(self, connection: Connection, path: Path, transfer_id: str, outgoing: _Outgoing, piece: Piece) -> None:
        assert outgoing.block_ids is not None
        end = piece.first_block + piece.num_blocks
        if error := self._misfit(piece, len(outgoing.block_ids)):
            outgoing.refused = True
            connection.send(encode(Broken(transfer_id, error)))
            return
        outgoing.num_pieces += 1
        outgoing.num_bytes += piece.num_bytes
        num_pieces = outgoing.num_pieces if piece.last else None
        header = KvPiece(transfer_id, piece.first_block, piece.num_blocks, num_pieces, tuple(piece.tail))
        reading, hidden = partial(self._reading, transfer_id), not outgoing.closed
        path.move(piece, header, outgoing.block_ids[piece.first_block : end], reading, hidden=hidden)

    def _misfit(self, piece: Piece, num_blocks: int) -> str:
        end = piece.first_block + piece.num_blocks
        if piece.bytes_per_block != self._way.bytes_per_block:
            return f"{piece.num_block_bytes} bytes for {piece.num_blocks} blocks"
        if len(piece.block_ids) != piece.num_blocks:
            return f"{len(piece.block_ids)} block ids for {piece.num_blocks} blocks"
        if piece.first_block < 0 or end > num_blocks:
            return f"blocks {piece.first_block} to {end} of a transfer of {num_blocks}"
        return ""

    @contextmanager
    def _reading(self, transfer_id: str) -> Iterator[bool]:
        with self._changed:
            wanted = transfer_id in self._outgoing
            self._moving = transfer_id if wanted else None
        try:
            yield wanted
        finally:
            with self._changed:
                self._moving = None
                self._changed.notify_all()

    def _finish(self, transfer_id: str, outgoing: _Outgoing) -> None:
        """Done, if nothing is left of it. Holding the lock."""
        if outgoing.refused:
            outgoing.pieces.clear()
        if outgoing.closed and not outgoing.pieces:
            del self._outgoing[transfer_id]
            self._report(Done(transfer_id, outgoing.num_bytes))

    def _give_up(self, error: str) -> None:
        """Every transfer to the endpoint fails, and no other begins. Waits while blocks are being read."""
        with self._changed:
            self._changed.wait_for(lambda: self._moving is None)
            if not self.ended:
                self._error, self.ended = error, True
            lost, self._outgoing = self._outgoing, {}
            for transfer_id in lost:
                self._report(self.failure(transfer_id))

    def _end(self, error: str, connection: Connection | None, path: Path | None) -> None:
        """Nothing of the receiver's stays mapped."""
        self._give_up(error)
        if path is not None:
            path.close()
        if connection is not None:
            connection.close()
        self._wake_read.close()
        self._wake_write.close()
