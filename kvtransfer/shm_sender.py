"""The sending end of KV through shared memory: reads blocks straight into the landing segment its receiver gave it."""

import mmap
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..wire.messages import KvPiece
from .landing import (
    MAX_MESSAGE_BYTES,
    Landed,
    Segment,
    Taken,
    decode_for_sender,
    encode,
    open_segment,
    peer_is_us,
    socket_address,
)
from .ring import Ring
from .transport import Done, Failed, Piece

RECORDS_A_SEGMENT = 4
"""A piece is cut so that this many parts fit a segment: the receiver empties one while the next is filled."""


class Lost(Exception):
    """This connection leads nowhere any more; the text says why."""


@dataclass(slots=True)
class _Outgoing:
    endpoint: str
    num_pieces: int = 0
    num_bytes: int = 0
    closed: bool = False


@dataclass(slots=True, eq=False)
class _Connection:
    """To one receiver. Pieces leave in the order they came."""

    socket: socket.socket
    progress_at: float
    pieces: deque[tuple[str, Piece]] = field(default_factory=deque)
    segment: mmap.mmap | None = None
    """None until the receiver has sent one."""
    ring: Ring = field(default_factory=lambda: Ring(0))
    unsaid: tuple[Landed, bytes] | None = None
    """An announcement that the socket had no room for: its bytes are in place."""


class ShmSender:
    """Fails all transfers to a receiver that is gone, or that makes no room for `stalled_s`."""

    def __init__(self, *, stalled_s: float = 30.0, clock: Callable[[], float] = time.monotonic):
        self._stalled_s = stalled_s
        self._clock = clock
        self._connections: dict[str, _Connection] = {}
        self._reached: set[str] = set()
        self._outgoing: dict[str, _Outgoing] = {}
        self._events: list[Done | Failed] = []

    @property
    def idle(self) -> bool:
        return not self._outgoing and not self._events

    def prepare(self, transfer_id: str, endpoint: str) -> None:
        """Nothing to do."""

    def send(self, transfer_id: str, endpoint: str, piece: Piece) -> None:
        if any(isinstance(e, Failed) and e.transfer_id == transfer_id for e in self._events):
            return  # it failed with the piece before
        outgoing = self._outgoing.setdefault(transfer_id, _Outgoing(endpoint))
        assert outgoing.endpoint == endpoint
        assert not outgoing.closed
        outgoing.closed = piece.last
        try:
            connection = self._connections.get(endpoint) or self._connect(endpoint)
        except OSError as error:
            self._lose(endpoint, str(error))
            return
        if not connection.pieces:
            connection.progress_at = self._clock()
        connection.pieces.append((transfer_id, piece))
        self._pump(endpoint, connection)

    def abandon(self, transfer_id: str) -> None:
        outgoing = self._outgoing.pop(transfer_id, None)
        connection = self._connections.get(outgoing.endpoint) if outgoing else None
        if connection is not None:
            connection.pieces = deque(item for item in connection.pieces if item[0] != transfer_id)
        self._events = [event for event in self._events if event.transfer_id != transfer_id]

    def poll(self) -> list[Done | Failed]:
        for endpoint, connection in list(self._connections.items()):
            self._pump(endpoint, connection)
        events, self._events = self._events, []
        return events

    def _connect(self, endpoint: str) -> _Connection:
        """Raises OSError."""
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            unix.setblocking(False)
            unix.connect(socket_address(endpoint))
            if not peer_is_us(unix):
                raise PermissionError("it belongs to another user")
        except OSError:
            unix.close()
            raise
        self._connections[endpoint] = _Connection(unix, self._clock())
        return self._connections[endpoint]

    def _pump(self, endpoint: str, connection: _Connection) -> None:
        """As far as it goes now."""
        try:
            self._listen(endpoint, connection)
            self._write_all(connection)
        except (Lost, OSError) as error:
            self._lose(endpoint, str(error))
            return
        waits = bool(connection.pieces or connection.unsaid)
        if waits and self._clock() - connection.progress_at > self._stalled_s:
            self._lose(endpoint, f"it made no room for {self._stalled_s:g} s")

    def _listen(self, endpoint: str, connection: _Connection) -> None:
        """Raises Lost or OSError."""
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(connection.socket, MAX_MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            if not message:
                raise Lost("it is gone")
            try:
                self._on_message(endpoint, connection, message, descriptors)
            except ValueError as error:
                raise Lost(str(error)) from error
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _on_message(self, endpoint: str, connection: _Connection, message: bytes, descriptors: list[int]) -> None:
        """Raises ValueError, of which ProtocolError is one, or OSError."""
        match decode_for_sender(message), descriptors:
            case Segment(num_bytes=num_bytes), [descriptor] if connection.segment is None:
                connection.segment = open_segment(descriptor, num_bytes)
                connection.ring = Ring(num_bytes)
                self._reached.add(endpoint)
            case Taken(num_pieces=num_pieces), []:
                connection.ring.release_until(num_pieces)
            case other, _:
                raise ValueError(f"{type(other).__name__} with {len(descriptors)} descriptors was not expected")
        connection.progress_at = self._clock()

    def _write_all(self, connection: _Connection) -> None:
        """Raises Lost or OSError."""
        if connection.segment is None:
            return
        while self._announce(connection) and connection.pieces:
            transfer_id, whole = connection.pieces[0]
            try:
                piece, rest = whole.cut(connection.ring.num_bytes // RECORDS_A_SEGMENT)
                offset = connection.ring.allocate(piece.num_bytes)
            except ValueError as error:
                self.abandon(transfer_id)
                self._events.append(Failed(transfer_id, str(error), unreachable=True))
                continue
            if offset is None:
                return
            landed = self._write(connection.segment, offset, transfer_id, piece)
            connection.unsaid = (landed, encode(landed))
            connection.pieces.popleft()
            if rest is not None:
                connection.pieces.appendleft((transfer_id, rest))

    def _announce(self, connection: _Connection) -> bool:
        """Whether nothing is left unsaid."""
        if connection.unsaid is None:
            return True
        landed, message = connection.unsaid
        try:
            connection.socket.send(message)
        except BlockingIOError:
            return False
        connection.unsaid = None
        connection.progress_at = self._clock()
        transfer_id = landed.piece.transfer_id
        if landed.piece.num_pieces is not None and transfer_id in self._outgoing:
            self._events.append(Done(transfer_id, self._outgoing.pop(transfer_id).num_bytes))
        return True

    def _write(self, segment: mmap.mmap, offset: int, transfer_id: str, piece: Piece) -> Landed:
        """Puts the bytes in place; what is to be said about them."""
        whole, end = memoryview(segment), offset + piece.num_block_bytes
        if piece.num_blocks:
            piece.read(piece.first_block, piece.num_blocks, whole[offset:end])
        for tensor in piece.tail.values():
            whole[end : end + tensor.nbytes] = tensor.cast("B")
            end += tensor.nbytes
        outgoing = self._outgoing[transfer_id]
        outgoing.num_pieces += 1
        outgoing.num_bytes += piece.num_bytes
        num_pieces = outgoing.num_pieces if piece.last else None
        header = KvPiece(transfer_id, piece.first_block, piece.num_blocks, num_pieces, tuple(piece.tail))
        return Landed(header, offset, piece.num_block_bytes, tuple(tensor.nbytes for tensor in piece.tail.values()))

    def _lose(self, endpoint: str, reason: str) -> None:
        """Every transfer to the endpoint fails."""
        connection = self._connections.pop(endpoint, None)
        if connection is not None:
            connection.socket.close()
        unreachable = endpoint not in self._reached
        for transfer_id in [each for each, outgoing in self._outgoing.items() if outgoing.endpoint == endpoint]:
            del self._outgoing[transfer_id]
            self._events.append(Failed(transfer_id, f"{endpoint}: {reason}", unreachable))

    def close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
