"""The receiving end of KV through shared memory, on one host.

A thread accepts senders, gives each a landing segment of its own, and takes their announcements; `poll` copies what was
announced from the segments into the pool, which itself is never shared.
"""

import logging
import mmap
import os
import secrets
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..wire.codec import ProtocolError
from .incoming import Incoming
from .landing import (
    MAX_MESSAGE_BYTES,
    SCHEME,
    Landed,
    Segment,
    Taken,
    create_segment,
    decode_for_receiver,
    encode,
    peer_is_us,
    socket_address,
)
from .transport import NO_BLOCKS, Done, Event, Failed, PoolBlocks, Store

log = logging.getLogger(__name__)

SEGMENT_BYTES = 32 << 20


@dataclass(slots=True, eq=False)
class _Peer:
    """One sender, for as long as its socket is open."""

    socket: socket.socket
    segment: mmap.mmap | None
    """None once the sender is gone: its bytes are nobody's any more."""
    num_taken: int = 0
    num_told: int = 0
    """Of those, how many the sender knows of."""
    unfinished: set[str] = field(default_factory=set)
    """Transfers that it has begun."""


class ShmReceiver:
    """`notify` is called, on another thread, when `poll` has something to do. Raises OSError where the system has no
    memfd or abstract sockets."""

    def __init__(self, notify: Callable[[], None], *, segment_bytes: int = SEGMENT_BYTES):
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd")
        self.endpoint = f"{SCHEME}isthmus-kv-{secrets.token_hex(16)}"
        self._segment_bytes = segment_bytes
        self._notify = notify
        self._incoming = Incoming(keep=lambda tensor: memoryview(bytes(tensor)))
        self._arrived: deque[tuple[_Peer, bytes]] = deque()  # no bytes: the sender is gone
        self._peers: list[_Peer] = []
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(socket_address(self.endpoint))
        self._listener.listen(64)
        self._wake_read, self._wake_write = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="kv-shm-receiver", daemon=True)
        self._thread.start()

    @property
    def num_arrived(self) -> int:
        """Announcements that wait for `poll`."""
        return len(self._arrived)

    def register(self, transfer_id: str, num_blocks: int, store: Store, blocks: PoolBlocks = NO_BLOCKS) -> None:
        self._incoming.register(transfer_id, num_blocks, store)

    def abandon(self, transfer_id: str) -> None:
        self._incoming.abandon(transfer_id)

    def poll(self) -> list[Event]:
        events: list[Event] = []
        while self._arrived:
            peer, message = self._arrived.popleft()
            if not message:
                events += self._lose(peer)
            elif peer.segment is not None:
                events += self._take(peer, message)
        for peer in self._peers:
            self._tell(peer)
        return events

    def _take(self, peer: _Peer, message: bytes) -> list[Done | Failed]:
        try:
            landed = decode_for_receiver(message)
            payload, tail = self._views(peer, landed)
        except ProtocolError as error:
            log.warning("dropping a sender of KV: %s", error)
            peer.socket.shutdown(socket.SHUT_RDWR)
            return self._void(peer)
        transfer_id = landed.piece.transfer_id
        event = self._incoming.take(landed.piece, payload, tail)
        peer.num_taken += 1
        if transfer_id in self._incoming:
            peer.unfinished.add(transfer_id)
        else:
            peer.unfinished.discard(transfer_id)
        return [] if event is None else [event]

    def _views(self, peer: _Peer, landed: Landed) -> tuple[memoryview, list[memoryview]]:
        """Of blocks and tail tensors. Raises ProtocolError if they are not within the segment."""
        sizes = (landed.num_bytes, *landed.tail_bytes)
        if landed.offset < 0 or min(sizes) < 0 or landed.offset + sum(sizes) > self._segment_bytes:
            raise ProtocolError(f"{sum(sizes)} bytes at {landed.offset} of a segment of {self._segment_bytes}")
        assert peer.segment is not None
        rest = memoryview(peer.segment)[landed.offset :]
        views = []
        for size in sizes:
            views.append(rest[:size])
            rest = rest[size:]
        return views[0], views[1:]

    def _lose(self, peer: _Peer) -> list[Done | Failed]:
        """Its socket is closed at the other end."""
        self._peers.remove(peer)
        peer.socket.close()
        return self._void(peer)

    def _void(self, peer: _Peer) -> list[Done | Failed]:
        """What it had begun will not be finished. The memory goes with the last view of it."""
        peer.segment = None
        return list(self._incoming.fail(sorted(peer.unfinished), "its sender is gone"))

    def _tell(self, peer: _Peer) -> None:
        if peer.num_told == peer.num_taken:
            return
        try:
            peer.socket.send(encode(Taken(peer.num_taken)))
        except BlockingIOError:
            return  # the next poll tells more
        except OSError:
            pass  # the thread will see it, too
        peer.num_told = peer.num_taken

    # On the thread.

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake_read:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if not peer_is_us(connection):
            log.warning("refusing a sender of KV that runs as another user")
            connection.close()
            return
        try:
            descriptor, segment = create_segment(self._segment_bytes)
        except OSError as error:  # not even that much memory
            log.warning("no shared memory for a sender of KV, which will use another transport: %s", error)
            connection.close()
            return
        peer = _Peer(connection, segment)
        connection.setblocking(False)
        try:
            socket.send_fds(connection, [encode(Segment(self._segment_bytes))], [descriptor])
        except OSError:
            connection.close()  # gone already
            return
        finally:
            os.close(descriptor)
        self._peers.append(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _read(self, peer: _Peer) -> None:
        try:
            message = peer.socket.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._selector.unregister(peer.socket)
        self._arrived.append((peer, message))
        self._notify()

    def close(self) -> None:
        self._wake_write.send(b"\0")
        self._thread.join()
        for each in (self._listener, self._wake_read, self._wake_write, *(peer.socket for peer in self._peers)):
            each.close()
        self._selector.close()
        self._peers.clear()
