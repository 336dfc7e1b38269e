"""KV over ZeroMQ: works between any two processes that reach each other by TCP.

A header frame (`wire.messages.KvPiece`), the payload, and a frame for each tail tensor. The receiver takes pieces by
transfer id, so that an abandoned transfer's blocks are free at once: what still comes finds no taker. With CURVE keys
the receiver takes pieces from those alone who have the sender's, and all is encrypted.
"""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from ..wire.codec import ProtocolError, decode_kv_header, encode
from ..wire.curve import ClientKeys, ServerKeys
from ..wire.messages import KvPiece
from ..wire.zap import ZapAuthenticator
from .incoming import Incoming
from .transport import NO_BLOCKS, Done, Event, Failed, Piece, PoolBlocks, Store

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 4 << 30
PIECE_BYTES = 2 << 20
"""Longer pieces are cut: what fits the processor's cache moves faster, and the ends overlap."""
MAX_FLYING = 32
"""Pieces to one receiver that ZeroMQ holds at a time."""


class ZmqReceiver:
    """Binds; a thread takes pieces off the socket and calls `notify`; `poll` stores them."""

    def __init__(self, notify: Callable[[], None], host: str = "127.0.0.1", keys: ServerKeys | None = None):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 64)
        self._authenticator = ZapAuthenticator(self._context, self._socket, keys) if keys else None
        self._socket.bind(f"tcp://{host}:*")
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._notify = notify
        self._arrived: deque[list[zmq.Frame]] = deque()
        self._incoming = Incoming()
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._receive, name="kv-receiver", daemon=True)
        self._thread.start()

    @property
    def num_arrived(self) -> int:
        """Pieces that wait for `poll`."""
        return len(self._arrived)

    def register(self, transfer_id: str, num_blocks: int, store: Store, blocks: PoolBlocks = NO_BLOCKS) -> None:
        self._incoming.register(transfer_id, num_blocks, store)

    def abandon(self, transfer_id: str) -> None:
        self._incoming.abandon(transfer_id)

    def poll(self) -> list[Event]:
        events: list[Event] = []
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
        poller.register(self._wake_read, zmq.POLLIN)
        while self._wake_read.fileno() not in dict(poller.poll()):
            self._arrived.append(self._socket.recv_multipart(copy=False))
            self._notify()
        if self._authenticator is not None:
            self._authenticator.close()
        self._socket.close()
        self._context.term()

    def close(self) -> None:
        self._wake_write.send(b"\0")
        self._thread.join()
        self._wake_read.close()
        self._wake_write.close()


@dataclass(slots=True)
class _Outgoing:
    endpoint: str
    pieces: deque[Piece] = field(default_factory=deque)
    num_pieces: int = 0
    num_bytes: int = 0
    num_flying: int = 0
    """Pieces that ZeroMQ has not let go of."""
    closed: bool = False

    @property
    def finished(self) -> bool:
        return self.closed and not self.pieces and not self.num_flying


@dataclass(frozen=True, slots=True)
class _Flying:
    transfer_id: str
    buffer: bytearray
    tracker: zmq.MessageTracker


@dataclass(slots=True, eq=False)
class _Channel:
    """To one receiver. Its buffers are used again and again: new memory costs more than copying."""

    socket: zmq.Socket
    progress_at: float
    free: list[bytearray] = field(default_factory=list)
    flying: list[_Flying] = field(default_factory=list)

    @property
    def takes_more(self) -> bool:
        return len(self.flying) < MAX_FLYING and bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

    def buffer(self, num_bytes: int) -> bytearray:
        if num_bytes > PIECE_BYTES:
            return bytearray(num_bytes)  # a single block of that size
        return self.free.pop() if self.free else bytearray(PIECE_BYTES)

    def give_back(self, buffer: bytearray) -> None:
        if len(buffer) == PIECE_BYTES:
            self.free.append(buffer)


class ZmqSender:
    """Hands pieces to a PUSH socket per endpoint; a transfer is Done when ZeroMQ has let go of every buffer."""

    def __init__(
        self,
        *,
        keys: ClientKeys | None = None,
        stalled_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._context = zmq.Context()
        self._keys = keys
        self._channels: dict[str, _Channel] = {}
        self._outgoing: dict[str, _Outgoing] = {}
        self._stalled_s = stalled_s
        self._clock = clock

    @property
    def idle(self) -> bool:
        return not self._outgoing

    def prepare(self, transfer_id: str, endpoint: str) -> None:
        """Nothing to do."""

    def send(self, transfer_id: str, endpoint: str, piece: Piece) -> None:
        outgoing = self._outgoing.setdefault(transfer_id, _Outgoing(endpoint))
        assert outgoing.endpoint == endpoint
        assert not outgoing.closed
        channel = self._channel(endpoint)
        if not any(other.pieces for other in self._outgoing.values() if other.endpoint == endpoint):
            channel.progress_at = self._clock()
        outgoing.pieces.append(piece)
        outgoing.closed = piece.last
        self._push(channel, transfer_id, outgoing)

    def abandon(self, transfer_id: str) -> None:
        self._outgoing.pop(transfer_id, None)

    def poll(self) -> list[Done | Failed]:
        for channel in self._channels.values():
            self._release(channel)
        events: list[Done | Failed] = []
        for transfer_id, outgoing in list(self._outgoing.items()):
            self._push(self._channels[outgoing.endpoint], transfer_id, outgoing)
            if outgoing.finished:
                del self._outgoing[transfer_id]
                events.append(Done(transfer_id, outgoing.num_bytes))
        for endpoint in {outgoing.endpoint for outgoing in self._outgoing.values()}:
            events += self._give_up_stalled(endpoint)
        return events

    def _release(self, channel: _Channel) -> None:
        """Takes back the buffers that ZeroMQ has let go of."""
        flying, channel.flying = channel.flying, []
        for each in flying:
            if not each.tracker.done:
                channel.flying.append(each)
                continue
            channel.give_back(each.buffer)
            channel.progress_at = self._clock()
            if each.transfer_id in self._outgoing:
                self._outgoing[each.transfer_id].num_flying -= 1

    def _give_up_stalled(self, endpoint: str) -> list[Failed]:
        """Closing the socket frees every buffer on it, so all its transfers fail together."""
        lost = {transfer_id: o for transfer_id, o in self._outgoing.items() if o.endpoint == endpoint}
        waits = any(outgoing.pieces or outgoing.num_flying for outgoing in lost.values())
        if not waits or self._clock() - self._channels[endpoint].progress_at <= self._stalled_s:
            return []
        self._channels.pop(endpoint).socket.close(linger=0)
        for transfer_id in lost:
            del self._outgoing[transfer_id]
        return [Failed(transfer_id, f"{endpoint} took nothing for {self._stalled_s:g} s") for transfer_id in lost]

    def _push(self, channel: _Channel, transfer_id: str, outgoing: _Outgoing) -> None:
        """As much as goes now: blocks are read only when there is room for them."""
        while outgoing.pieces and channel.takes_more:
            piece, rest = outgoing.pieces[0].cut(PIECE_BYTES)
            num_pieces = outgoing.num_pieces + 1 if piece.last else None
            header = KvPiece(transfer_id, piece.first_block, piece.num_blocks, num_pieces, tuple(piece.tail))
            buffer = channel.buffer(piece.num_block_bytes)
            payload = memoryview(buffer)[: piece.num_block_bytes]
            if piece.num_blocks:
                piece.read(piece.first_block, piece.num_blocks, payload)
            frames = [zmq.Frame(part, copy=False, track=True) for part in (payload, *piece.tail.values())]
            try:
                channel.socket.send_multipart([encode(header), *frames], zmq.NOBLOCK, copy=False)
            except zmq.Again:  # the connection went away since
                channel.give_back(buffer)
                return
            # A tracker of its own for each frame: the one that send_multipart returns is that of the last alone.
            tracker = zmq.MessageTracker(*(frame.tracker for frame in frames))
            channel.flying.append(_Flying(transfer_id, buffer, tracker))
            channel.progress_at = self._clock()
            outgoing.num_pieces += 1
            outgoing.num_flying += 1
            outgoing.num_bytes += piece.num_bytes
            outgoing.pieces.popleft()
            if rest is not None:
                outgoing.pieces.appendleft(rest)

    def _channel(self, endpoint: str) -> _Channel:
        if endpoint not in self._channels:
            push = self._context.socket(zmq.PUSH)
            push.setsockopt(zmq.SNDHWM, 2 * MAX_FLYING)
            push.setsockopt(zmq.IMMEDIATE, 1)
            if self._keys is not None:
                self._keys.secure(push)
            push.connect(endpoint)
            self._channels[endpoint] = _Channel(push, self._clock())
        return self._channels[endpoint]

    def close(self) -> None:
        for channel in self._channels.values():
            channel.socket.close(linger=0)
        self._context.term()
