"""A worker's line to its router: a thread of its own owns the DEALER socket and beats whatever the worker does."""

import logging
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import zmq

from .codec import ProtocolError, decode_from_router, encode
from .curve import ClientKeys
from .messages import MAX_CONTROL_BYTES, FromRouter, FromWorker, Heartbeat, Hello, HelloRefused, SayHello, Welcome
from .zap import HandshakeMonitor

log = logging.getLogger(__name__)

HELLO_INTERVAL_S = 0.5
REFUSED_PAUSE_S = 1.0
"""Before a connection is tried again whose keys did not fit."""


@dataclass(frozen=True, slots=True)
class RouterLost:
    """The router was silent for too long, or a new one answered: all placements it made are void."""

    reason: str


class WorkerLink:
    """Says Hello until a Welcome comes, then carries messages both ways.

    `inbox` holds, in order, what the router sent (of heartbeats those that renew leases), `RouterLost`, and whatever
    else its owner puts there. After a RouterLost the link says Hello again on a fresh socket, so nothing queued for the
    old router reaches a new one. With `keys` it talks to the router that has the server's, and to no other.
    """

    def __init__(
        self,
        address: str,
        hello: Hello,
        heartbeat: Callable[[], Heartbeat],
        *,
        keys: ClientKeys | None = None,
        silence_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._address = address
        self._keys = keys
        self._hello = hello
        self._heartbeat = heartbeat
        self._silence_s = silence_s
        self._clock = clock
        self._outbox: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._dealer: zmq.Socket | None = None
        """While a router is served; used with the lock held."""
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._refused = False
        self._router_epoch: int | None = None
        self._interval_s = HELLO_INTERVAL_S
        self._lost = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="router-link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, message: FromWorker) -> None:
        """From any thread; in order; never blocks. Dropped, as a whole, only with the router it was meant for."""
        payload = encode(message)
        with self._lock:
            if self._dealer is None or self._router_epoch is None or self._lost or self._outbox:
                self._outbox.append(payload)
            else:  # at once: handing it to the other thread costs a busy worker up to a switch interval of the GIL
                self._put(self._dealer, payload)
                if not int(self._dealer.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    return
        self._wake()

    def close(self, timeout_s: float = 2.0) -> None:
        """Sends what is queued and ends the thread."""
        self._closing = True
        self._wake()
        self._thread.join(timeout_s)
        self._wake_write.close()

    def _wake(self) -> None:
        with suppress(OSError):  # woken often enough already, or closed
            self._wake_write.send(b"\0")

    def _run(self) -> None:
        context = zmq.Context()
        try:
            while not self._closing:
                dealer = self._open(context)
                try:
                    self._serve(dealer)
                finally:
                    with self._lock:
                        self._dealer = None
                    self._handshakes.close(dealer)
                    dealer.close(linger=500 if self._closing else 0)
                if self._refused and not self._closing:
                    select.select([self._wake_read], [], [], REFUSED_PAUSE_S)
        finally:
            context.term()
            self._wake_read.close()

    def _open(self, context: zmq.Context) -> zmq.Socket:
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, identity(self._hello))
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES)
        dealer.setsockopt(zmq.SNDHWM, 0)
        dealer.setsockopt(zmq.RCVHWM, 0)
        dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if self._keys is not None:
            self._keys.secure(dealer)
        self._handshakes = HandshakeMonitor(dealer)
        dealer.connect(self._address)
        return dealer

    def _serve(self, dealer: zmq.Socket) -> None:
        """One router's time: returns when the worker closes or the router is lost."""
        poller = select.poll()
        poller.register(int(dealer.getsockopt(zmq.FD)), select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        self._router_epoch = None
        self._lost = False
        self._interval_s = HELLO_INTERVAL_S
        heard = beaten = self._clock()
        self._put(dealer, encode(self._hello))
        self._dealer = dealer
        while True:
            with self._lock:
                now = self._clock()
                if now >= beaten + self._interval_s:
                    beaten = now
                    self._beat(dealer)
                if self._exchange(dealer):
                    heard = self._clock()
            if self._closing:
                return
            if self._router_epoch is not None and now - heard > self._silence_s:
                self._lose(f"router silent for {now - heard:.1f} s")
            if self._lost:
                return
            if self._router_epoch is None and self._handshakes.num_failed():
                self._refuse()
                return
            poller.poll(round(max(0.0, beaten + self._interval_s - self._clock()) * 1000))

    def _refuse(self) -> None:
        """ZeroMQ does not try again after such a handshake, but the router may be started again with other keys."""
        if not self._refused:
            log.warning("%s refuses the connection: the router's keys and ours do not belong together", self._address)
        self._refused = True

    def _put(self, dealer: zmq.Socket, payload: bytes) -> None:
        """Never blocks: the connection is gone for good where nothing can be queued for it."""
        try:
            dealer.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            if self._router_epoch is not None and not self._lost:
                self._lose("the router refuses the connection")

    def _exchange(self, dealer: zmq.Socket) -> bool:
        """Sends and receives all there is; whether anything came. Receives last: sending swallows the signal."""
        heard = self._receive(dealer)
        self._flush(dealer)
        return self._receive(dealer) or heard

    def _beat(self, dealer: zmq.Socket) -> None:
        self._put(dealer, encode(self._hello if self._router_epoch is None else self._heartbeat()))

    def _flush(self, dealer: zmq.Socket) -> None:
        with suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass
        if self._router_epoch is None and not self._closing:
            return
        while self._outbox:
            self._put(dealer, self._outbox.popleft())

    def _receive(self, dealer: zmq.Socket) -> bool:
        heard = False
        while True:
            try:
                payload = dealer.recv(zmq.NOBLOCK)
            except zmq.Again:
                return heard
            heard = True
            try:
                self._deliver(decode_from_router(payload))
            except ProtocolError as error:
                log.warning("ignoring what the router sent: %s", error)

    def _deliver(self, message: FromRouter) -> None:
        if isinstance(message, Heartbeat) and not message.held:
            return
        if isinstance(message, SayHello):
            if self._router_epoch is not None:
                self._lose("the router does not know this worker")
            return
        if isinstance(message, Welcome):
            if message.epoch == self._router_epoch:
                return
            assert self._router_epoch is None, "a welcome answers a hello"
            self._router_epoch = message.epoch
            self._refused = False
            self._interval_s = message.heartbeat_interval_s
        if isinstance(message, HelloRefused):
            self._router_epoch = None
        self.inbox.put(message)

    def _lose(self, reason: str) -> None:
        self._lost = True
        self._outbox.clear()
        self.inbox.put(RouterLost(reason))


def identity(hello: Hello) -> bytes:
    """A restarted worker is another peer, so that the router never takes one for the other."""
    return f"{hello.worker}#{hello.epoch:016x}".encode()


def name_in(identity: bytes) -> str:
    """The worker's name for logs, from its identity."""
    return identity.rpartition(b"#")[0].decode("utf-8", "backslashreplace")
