"""The processes a measurement runs against: started, awaited, watched and ended by the supervisor that serves too."""

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ..launch.process import ProcessSpec
from ..launch.supervisor import Supervisor

START_TIMEOUT_S = 60.0


class Stack:
    """Entered, all processes are ready. Left with an error, what they wrote is shown; one that died is an error."""

    def __init__(self, specs: Sequence[ProcessSpec]):
        self._log: list[str] = []
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._facts: dict[str, dict[str, Any]] = {}
        self._supervisor = Supervisor(
            specs,
            restart=False,
            drain_timeout_s=1.0,
            on_log=lambda name, line: self._log.append(f"{name}: {line}"),
            on_ready=self._on_ready,
        )
        self._thread = threading.Thread(target=self._run, name="supervisor")

    def __enter__(self) -> "Stack":
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S) or self._error is not None:
            self._end()
            raise RuntimeError(f"the processes did not start: {self._error}") from self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if error is not None:
            print(*self._log, sep="\n", file=sys.stderr)
        if self._error is not None:
            raise RuntimeError(f"a process died while it was measured: {self._error}") from self._error

    def cpu_s(self, name: str) -> float:
        """Seconds of CPU that a process, all its threads, has used so far."""
        return time.clock_gettime(cpu_clock(self._supervisor.pids[name]))

    def port(self, name: str) -> int:
        """Where a process listens, as it said when it became ready."""
        return int(self._facts[name]["port"])

    def _on_ready(self, facts: dict[str, dict[str, Any]]) -> None:
        self._facts = facts
        self._ready.set()

    def _run(self) -> None:
        try:
            self._supervisor.run()
        except RuntimeError as error:
            self._error = error
        finally:
            self._ready.set()

    def _end(self) -> None:
        self._supervisor.stop()
        self._thread.join()


def cpu_clock(pid: int) -> int:
    """What clock_getcpuclockid(3) gives on Linux: the process's CPU time in nanoseconds, not in scheduler ticks."""
    return (~pid << 3) | 2


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]
