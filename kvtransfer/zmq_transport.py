"""KV over ZeroMQ: works between any two processes that reach each other by TCP.

A header frame (`wire.messages.KvPiece`), the payload, and a frame for each tail tensor. The receiver takes pieces by
transfer id, so that an abandoned transfer's blocks are free at once: what still comes finds no taker.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from ..wire.codec import ProtocolError, decode_kv_header, encode
from ..wire.messages import KvPiece
from .incoming import Incoming
from .transport import Done, Failed, Piece, Store

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 4 << 30


class ZmqReceiver:
    """Binds; a thread takes pieces off the socket and calls `notify`; `poll` stores them."""

    def __init__(self, notify: Callable[[], None], host: str = "127.0.0.1"):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 64)
        self._socket.bind(f"tcp://{host}:*")
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._notify = notify
        self._arrived: deque[list[zmq.Frame]] = deque()
        self._incoming = Incoming()
        self._closing = False
        self._thread = threading.Thread(target=self._receive, name="kv-receiver", daemon=True)
        self._thread.start()

    @property
    def num_arrived(self) -> int:
        """Pieces that wait for `poll`."""
        return len(self._arrived)

    def register(self, transfer_id: str, num_blocks: int, store: Store) -> None:
        self._incoming.register(transfer_id, num_blocks, store)

    def abandon(self, transfer_id: str) -> None:
        self._incoming.abandon(transfer_id)

    def poll(self) -> list[Done | Failed]:
        events = []
        while self._arrived:
            event = self._take(self._arrived.popleft())
            if event is not None:
                events.append(event)
        return events

    def _take(self, frames: list[zmq.Frame]) -> Done | Failed | None:
        try:
            piece = decode_kv_header(frames[0].buffer)
        except ProtocolError as error:
            log.warning("dropping a KV piece: %s", error)
            return None
        buffers = [frame.buffer for frame in frames[1:]]
        payload = buffers[0] if buffers else memoryview(b"")
        return self._incoming.take(piece, payload, buffers[1:])

    def _receive(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        while not self._closing:
            if poller.poll(100):
                self._arrived.append(self._socket.recv_multipart(copy=False))
                self._notify()
        self._socket.close()
        self._context.term()

    def close(self) -> None:
        self._closing = True
        self._thread.join()


@dataclass(slots=True)
class _Outgoing:
    endpoint: str
    pieces: deque[Piece] = field(default_factory=deque)
    num_pieces: int = 0
    num_bytes: int = 0
    closed: bool = False
    trackers: list[zmq.MessageTracker] = field(default_factory=list)
    last_progress: float = 0.0

    @property
    def finished(self) -> bool:
        return self.closed and not self.pieces and not self.trackers


class ZmqSender:
    """Hands pieces to a PUSH socket per endpoint; a transfer is Done when ZeroMQ has let go of every buffer."""

    def __init__(self, *, stalled_s: float = 30.0, clock: Callable[[], float] = time.monotonic):
        self._context = zmq.Context()
        self._sockets: dict[str, zmq.Socket] = {}
        self._outgoing: dict[str, _Outgoing] = {}
        self._stalled_s = stalled_s
        self._clock = clock

    @property
    def idle(self) -> bool:
        return not self._outgoing

    def send(self, transfer_id: str, endpoint: str, piece: Piece) -> None:
        outgoing = self._outgoing.setdefault(transfer_id, _Outgoing(endpoint, last_progress=self._clock()))
        assert outgoing.endpoint == endpoint
        assert not outgoing.closed
        outgoing.pieces.append(piece)
        outgoing.closed = piece.last
        self._push(transfer_id, outgoing)

    def abandon(self, transfer_id: str) -> None:
        self._outgoing.pop(transfer_id, None)

    def poll(self) -> list[Done | Failed]:
        events: list[Done | Failed] = []
        for transfer_id, outgoing in list(self._outgoing.items()):
            self._push(transfer_id, outgoing)
            self._release(outgoing)
            if outgoing.finished:
                del self._outgoing[transfer_id]
                events.append(Done(transfer_id, outgoing.num_bytes))
        for endpoint in {o.endpoint for o in self._outgoing.values() if self._stalled(o)}:
            events += self._give_up(endpoint)
        return events

    def _release(self, outgoing: _Outgoing) -> None:
        waiting = [tracker for tracker in outgoing.trackers if not tracker.done]
        if len(waiting) < len(outgoing.trackers):
            outgoing.last_progress = self._clock()
        outgoing.trackers = waiting

    def _stalled(self, outgoing: _Outgoing) -> bool:
        waits = bool(outgoing.pieces or outgoing.trackers)
        return waits and self._clock() - outgoing.last_progress > self._stalled_s

    def _give_up(self, endpoint: str) -> list[Done | Failed]:
        """Closing the socket frees every buffer on it, so all its transfers fail together."""
        self._sockets.pop(endpoint).close(linger=0)
        lost = [transfer_id for transfer_id, o in self._outgoing.items() if o.endpoint == endpoint]
        for transfer_id in lost:
            del self._outgoing[transfer_id]
        return [Failed(transfer_id, f"{endpoint} took nothing for {self._stalled_s:g} s") for transfer_id in lost]

    def _push(self, transfer_id: str, outgoing: _Outgoing) -> None:
        """As many pieces as the socket takes now: blocks are read only when there is room for them."""
        push = self._socket(outgoing.endpoint)
        while outgoing.pieces and push.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
            piece = outgoing.pieces[0]
            num_pieces = outgoing.num_pieces + 1 if piece.last else None
            header = KvPiece(transfer_id, piece.first_block, piece.num_blocks, num_pieces, tuple(piece.tail))
            payload = piece.read(piece.first_block, piece.num_blocks, None) if piece.num_blocks else memoryview(b"")
            frames: list[bytes | memoryview] = [encode(header), payload, *piece.tail.values()]
            try:
                tracker = push.send_multipart(frames, zmq.NOBLOCK, copy=False, track=True)
            except zmq.Again:  # the connection went away since
                return
            assert tracker is not None
            outgoing.trackers.append(tracker)
            outgoing.num_pieces += 1
            outgoing.num_bytes += piece.num_bytes
            outgoing.last_progress = self._clock()
            outgoing.pieces.popleft()

    def _socket(self, endpoint: str) -> zmq.Socket:
        if endpoint not in self._sockets:
            push = self._context.socket(zmq.PUSH)
            push.setsockopt(zmq.SNDHWM, 16)
            push.setsockopt(zmq.IMMEDIATE, 1)
            push.connect(endpoint)
            self._sockets[endpoint] = push
        return self._sockets[endpoint]

    def close(self) -> None:
        for push in self._sockets.values():
            push.close(linger=0)
        self._context.term()
