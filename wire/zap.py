"""Who may connect to a socket with CURVE keys (ZAP, rfc.zeromq.org/spec/27), and a log line about who may not."""

import logging
import threading
import time
from socket import socketpair

import zmq
from zmq.utils.monitor import recv_monitor_message
from zmq.utils.z85 import encode

from .curve import ServerKeys

log = logging.getLogger(__name__)

ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"
HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
QUIET_S = 10.0
"""After a warning."""


class HandshakeMonitor:
    """Handshakes of a socket that failed. `events` can be polled, by the socket's thread or by one other alone."""

    def __init__(self, socket: zmq.Socket[bytes]):
        self.events: zmq.Socket[bytes] = socket.get_monitor_socket(HANDSHAKE_FAILURES)

    def num_failed(self) -> int:
        """Since the last call."""
        failed = 0
        while self.events.poll(0):
            failed += recv_monitor_message(self.events)["event"] != zmq.EVENT_MONITOR_STOPPED
        return failed

    def close(self, socket: zmq.Socket[bytes]) -> None:
        """Before the socket it watches closes."""
        socket.disable_monitor()
        self.events.close(linger=0)


class ZapAuthenticator:
    """Lets those in who have one of the clients' keys, in a thread of its own, for one socket of a context.

    Made before the socket binds, closed before it closes.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], keys: ServerKeys):
        self._clients = keys.clients
        self._requests = context.socket(zmq.REP)
        self._requests.setsockopt(zmq.LINGER, 0)
        self._requests.bind(ENDPOINT)
        keys.secure(socket)
        self._monitor = HandshakeMonitor(socket)
        self._socket = socket
        self._quiet_until = 0.0
        self._stop_here, self._stop_there = socketpair()
        self._thread = threading.Thread(target=self._run, name="zap", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop_here.close()
        self._thread.join()
        self._monitor.close(self._socket)
        self._requests.close()
        self._stop_there.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._requests, self._monitor.events, self._stop_there):
            poller.register(source, zmq.POLLIN)
        while self._stop_there.fileno() not in (ready := dict(poller.poll())):
            if self._requests in ready:
                self._answer()
            if self._monitor.num_failed():
                self._warn("a connection was refused: it has no keys, or not those that belong to this router's")

    def _answer(self) -> None:
        """One request: version, its number, domain, address, identity, mechanism, and the client's key."""
        version, number, _, address, _, mechanism, *credentials = self._requests.recv_multipart()
        known = version == VERSION and mechanism == b"CURVE" and len(credentials) == 1
        known = known and encode(credentials[0]) in self._clients
        if not known:
            self._warn(f"a connection from {address.decode()} was refused: its key is not one of ours")
        status = (b"200", b"OK") if known else (b"400", b"unknown key")
        self._requests.send_multipart((VERSION, number, *status, b"", b""))

    def _warn(self, message: str) -> None:
        """Not again and again: who is refused keeps trying."""
        if time.monotonic() >= self._quiet_until:
            log.warning("%s", message)
            self._quiet_until = time.monotonic() + QUIET_S
