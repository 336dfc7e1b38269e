"""Messages between the two ends of a pair, over a stream socket: Unix or TCP, length first.

Its end is noticed at once: the system closes a dead process's sockets.
"""

import select
import socket
import struct
import threading
import time
from contextlib import suppress

_LENGTH = struct.Struct("<I")
MAX_MESSAGE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 18


class Lost(Exception):
    """The other end is gone, or makes no sense; the text says why."""


class Connection:
    """`send` and `flush` may be called from any thread, `receive` from one."""

    def __init__(self, stream: socket.socket):
        self._socket = stream
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._received = bytearray()
        if stream.family != socket.AF_UNIX:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def local_host(self) -> str:
        """The address at which the other end sees this one; TCP only."""
        return str(self._socket.getsockname()[0])

    @property
    def peer_host(self) -> str:
        """TCP only."""
        return str(self._socket.getpeername()[0])

    def send(self, payload: bytes) -> None:
        """Never blocks: what the socket has no room for goes with a later `flush`. Silent if the other end is gone,
        which `receive` says."""
        with self._lock:
            self._unsent += _LENGTH.pack(len(payload)) + payload
            self._flush()

    def flush(self) -> bool:
        """Whether everything is sent."""
        with self._lock:
            self._flush()
            return not self._unsent

    def _flush(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()

    def receive(self, timeout_s: float | None = None, *, wake: int | None = None) -> bytes | None:
        """The next message. None after `timeout_s`, or when descriptor `wake` has something to read. Raises Lost."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self._take()) is None:
            if not self._wait(None if deadline is None else max(0.0, deadline - time.monotonic()), wake):
                return None
        return message

    def _take(self) -> bytes | None:
        if len(self._received) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._received)
        if size > MAX_MESSAGE_BYTES:
            raise Lost(f"it announced a message of {size} bytes")
        end = _LENGTH.size + size
        if len(self._received) < end:
            return None
        message = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return message

    def _wait(self, timeout_s: float | None, wake: int | None) -> bool:
        """Whether bytes were read."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        if wake is not None:
            poller.register(wake, select.POLLIN)
        ready = dict(poller.poll(None if timeout_s is None else timeout_s * 1000))
        events = ready.get(self._socket.fileno(), 0)
        if events & select.POLLOUT:
            self.flush()
        if events & ~select.POLLOUT:
            self._read()
            return True
        return bool(events) and wake not in ready

    def _read(self) -> None:
        try:
            chunk = self._socket.recv(_CHUNK_BYTES)
        except OSError as error:
            raise Lost(str(error)) from error
        if not chunk:
            raise Lost("it is gone")
        self._received += chunk

    def hung_up(self, timeout_s: float) -> bool:
        """Whether the other end closes within `timeout_s`, seen without reading. From any thread."""
        poller = select.poll()
        try:
            poller.register(self._socket, select.POLLRDHUP)
        except ValueError:
            return True
        return bool(poller.poll(timeout_s * 1000))

    def shut(self) -> None:
        """Both ends' `receive` raise Lost. From any thread."""
        with suppress(OSError):  # it may be already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.shut()
        self._socket.close()
