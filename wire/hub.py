"""The router's one ROUTER socket: every worker connects to it."""

import logging
import threading
from dataclasses import dataclass

import zmq

from .codec import ProtocolError, decode_from_worker, encode
from .curve import ServerKeys
from .messages import MAX_CONTROL_BYTES, FromRouter, FromWorker, Heartbeat, HelloRefused
from .zap import ZapAuthenticator

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dropped:
    """The hub no longer listens to this peer."""

    reason: str


class Hub:
    """Messages from and to workers, by peer (its socket identity: name and epoch). Nothing here blocks.

    One thread receives; any thread may send. `fileno` becomes readable when something may have arrived, once:
    receive until nothing comes, and again after a send, since sending swallows the signal too. Raises zmq.ZMQError if
    the address cannot be bound. With `keys` only peers that have the clients' may connect, and all is encrypted.
    """

    def __init__(self, address: str, keys: ServerKeys | None = None):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A link that lost us opens a new connection under its name, maybe before the old one is seen to close.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES)
        self._socket.setsockopt(zmq.SNDHWM, 100_000)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._authenticator = ZapAuthenticator(self._context, self._socket, keys) if keys else None
        try:
            self._socket.bind(address)
        except zmq.ZMQError:
            self._close()
            raise
        self._lock = threading.Lock()
        self._dropped: set[bytes] = set()
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def fileno(self) -> int:
        return int(self._socket.getsockopt(zmq.FD))

    def receive(self, limit: int = 256) -> list[tuple[bytes, FromWorker | Dropped]]:
        """Up to `limit` messages that have arrived; fewer means that no more wait."""
        arrived: list[tuple[bytes, FromWorker | Dropped]] = []
        while len(arrived) < limit:
            try:
                with self._lock:
                    frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if frames[0] not in self._dropped:
                arrived.append((frames[0], self._decode(frames)))
        return arrived

    def _decode(self, frames: list[bytes]) -> FromWorker | Dropped:
        try:
            if len(frames) != 2:
                raise ProtocolError(f"{len(frames) - 1} frames where one was expected")
            return decode_from_worker(frames[1])
        except ProtocolError as error:
            log.warning("dropping worker %s: %s", peer_name(frames[0]), error)
            self.drop(frames[0], str(error))
            return Dropped(str(error))

    def drop(self, peer: bytes, reason: str) -> None:
        """Tells the peer why, and ignores it from now on: it may come back in a new epoch."""
        self.send(peer, HelloRefused(reason))
        self._dropped.add(peer)

    def send(self, peer: bytes, message: FromRouter) -> bool:
        """False if the peer is gone, or so slow that its queue is full: it counts as lost then."""
        return self._send(peer, encode(message))

    def _send(self, peer: bytes, payload: bytes) -> bool:
        try:
            with self._lock:
                self._socket.send_multipart((peer, payload), zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.ENOTSOCK):
                return False
            raise
        return True

    def beat(self, peers: list[bytes]) -> None:
        """One heartbeat to each of these peers."""
        payload = encode(Heartbeat())
        for peer in peers:
            self._send(peer, payload)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._authenticator is not None:
            self._authenticator.close()
        self._socket.close()
        self._context.term()


def peer_name(peer: bytes) -> str:
    return peer.decode("utf-8", "backslashreplace")
