"""One supervised process, seen from its supervisor: start, read what it writes, signal, reap. Nothing here waits."""

import json
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .child import SUPERVISOR_FD

NUM_LAST_LINES = 20
MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run. `stop_first`: it is told to end, and has ended, before the others are told."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Over the supervisor's own."""
    ready_timeout_s: float = 600.0
    stop_first: bool = False


class LineBuffer:
    """Whole lines out of bytes as they come."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace").rstrip("\r") for line in lines]

    def flush(self) -> list[str]:
        return self.push(b"\n") if self._rest else []


class Process:
    """A running process. `output` and `line` are non-blocking and can be selected on."""

    def __init__(self, spec: ProcessSpec, now: float):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = {**os.environ, **spec.environment, SUPERVISOR_FD: str(theirs.fileno()), "PYTHONUNBUFFERED": "1"}
        with theirs:
            self._popen = subprocess.Popen(
                spec.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # Ctrl-C in a terminal reaches the supervisor alone, which then ends all in order
            )
        assert self._popen.stdout is not None
        self.output = self._popen.stdout
        os.set_blocking(self.output.fileno(), False)
        self.line = ours
        self.spec = spec
        self.started = now
        self.ready_at: float | None = None
        self.facts: dict[str, Any] | None = None
        """What it said when it became ready."""
        self.output_closed = False
        self.last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
        self._log = LineBuffer()
        self._ready = LineBuffer()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def name(self) -> str:
        return self.spec.name

    def read_log(self) -> list[str]:
        """Lines written since the last call, with what was left of one if the process has closed its output."""
        lines: list[str] = []
        while data := self._read_some():
            lines += self._log.push(data)
        if data == b"":
            self.output_closed = True
            lines += self._log.flush()
        self.last_lines.extend(lines)
        return lines

    def _read_some(self) -> bytes | None:
        """None: nothing yet; empty: closed."""
        try:
            return os.read(self.output.fileno(), 1 << 16)
        except BlockingIOError:
            return None

    def read_ready(self) -> bool:
        """Whether it has become ready in this call."""
        try:
            lines = self._ready.push(self.line.recv(1 << 16))
        except (BlockingIOError, ConnectionResetError):
            return False
        if self.facts is not None or not lines:
            return False
        self.facts = json.loads(lines[0])
        return True

    def overdue(self, now: float) -> bool:
        return self.facts is None and now - self.started > self.spec.ready_timeout_s

    @property
    def exit_code(self) -> int | None:
        """None while it runs, negative if a signal killed it."""
        return self._popen.poll()

    def death(self) -> str | None:
        """How it ended; None while it runs."""
        code = self.exit_code
        if code is None:
            return None
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def send_signal(self, number: signal.Signals) -> None:
        """Safe on a process that has ended."""
        self._popen.send_signal(number)

    def close(self) -> None:
        """Ends it, and what it started, if it still runs."""
        if self._popen.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()
        self.output.close()
        self.line.close()
