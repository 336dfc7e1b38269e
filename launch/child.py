"""The child's end of supervision: say when it is ready, and never outlive the supervisor.

A supervised process is started with one end of a socket pair and its number in ISTHMUS_SUPERVISOR_FD. It writes one
line of JSON there when it is ready; when the other end closes, its supervisor is gone.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
from typing import Any

SUPERVISOR_FD = "ISTHMUS_SUPERVISOR_FD"
PR_SET_PDEATHSIG = 1


class Lifeline:
    """The line to the supervisor, if there is one: a process started by hand has none, and needs none."""

    def __init__(self, connection: socket.socket | None):
        self._connection = connection
        self._announced = False

    @classmethod
    def from_environment(cls) -> "Lifeline":
        """Takes the line over and watches it. Called once, before the process does anything slow."""
        given = os.environ.pop(SUPERVISOR_FD, None)
        if given is None:
            return cls(None)
        connection = socket.socket(fileno=int(given))
        connection.set_inheritable(False)
        _kill_when_parent_dies()
        threading.Thread(target=_watch, args=(connection,), name="lifeline", daemon=True).start()
        return cls(connection)

    def ready(self, **facts: Any) -> None:
        """Tells the supervisor, once, that the process does its work from now on, and what it should know about it."""
        if self._connection is not None and not self._announced:
            self._announced = True
            self._connection.sendall(json.dumps(facts).encode() + b"\n")


def _kill_when_parent_dies() -> None:
    """On Linux the kernel does it, even while this process is stuck in C code; elsewhere the line alone has to."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(connection: socket.socket) -> None:
    try:
        while connection.recv(1):
            pass
    except OSError:  # reset: as good as closed
        pass
    os._exit(1)
