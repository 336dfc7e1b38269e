"""Starts processes, waits until they are ready, watches them, starts those that die again, and ends them in order.

One thread, one loop: it sleeps until a process writes or closes something, a signal comes, or a moment is due.
"""

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import IO, Any

from .backoff import Backoff
from .process import Process, ProcessSpec
from .resolve import CONFIG_ERROR_CODE

log = logging.getLogger(__name__)

TICK_S = 0.2
KILL_GRACE_S = 5.0
"""What a process that was told to end gets beyond the drain timeout before it is killed."""


class GaveUp(RuntimeError):
    """A process died and is not started again; the message names it, how it died, and its last lines.

    That is so without `restart`, after three deaths within a minute, and if it never could work as it was configured.
    """


class Supervisor:
    """Runs `specs` until told to stop.

    `on_log(name, line)` gets every line that a process writes; `on_ready(facts)` is called once, when all are ready
    for the first time, with what each said, by name.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        restart: bool,
        drain_timeout_s: float,
        on_log: Callable[[str, str], None],
        on_ready: Callable[[dict[str, dict[str, Any]]], None] = lambda facts: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._specs = {spec.name: spec for spec in specs}
        assert len(self._specs) == len(specs), "names are unique"
        self._restart = restart
        self._drain_timeout_s = drain_timeout_s
        self._on_log = on_log
        self._on_ready = on_ready
        self._clock = clock
        self._running: dict[str, Process] = {}
        self._due: dict[str, float] = {}
        self._backoff = {name: Backoff() for name in self._specs}
        self._have_served: set[str] = set()
        self._announced = False
        self._num_stops = 0
        self._selector = selectors.DefaultSelector()

    def stop(self) -> None:
        """From a signal handler or another thread: end all, in order. The second time: at once."""
        self._num_stops += 1

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._running.items()}

    def run(self) -> None:
        """Returns when all have ended after `stop`. Raises GaveUp; nothing is left running either way."""
        try:
            for name in self._specs:
                self._start(name)
            self._watch()
        finally:
            for process in list(self._running.values()):
                self._forget(process)
            self._selector.close()

    def _watch(self) -> None:
        try:
            while not self._num_stops:
                self._turn()
        finally:
            self._stop_in_order()

    def _turn(self) -> None:
        self._wait()
        now = self._clock()
        for process in list(self._running.values()):
            self._look_at(process, now)
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            self._start(name)
        self._announce()

    def _start(self, name: str) -> None:
        process = Process(self._specs[name], self._clock())
        self._running[name] = process
        self._selector.register(process.output, selectors.EVENT_READ)
        self._selector.register(process.line, selectors.EVENT_READ)
        log.debug("started %s as process %d", name, process.pid)

    def _wait(self) -> None:
        for key, _ in self._selector.select(TICK_S):
            if isinstance(key.fileobj, socket.socket) and _closed(key.fileobj):
                self._unregister(key.fileobj)

    def _look_at(self, process: Process, now: float) -> None:
        death = process.death()  # before reading, so that nothing written before it is missed
        self._pass_on(process)
        if process.read_ready():
            process.ready_at = now
            self._have_served.add(process.name)
            log.info("%s is ready after %.1f s", process.name, now - process.started)
        if death is None and process.overdue(now):
            death = f"not ready after {process.spec.ready_timeout_s:.0f} s"
        if death is not None:
            self._on_death(process, death, now)

    def _pass_on(self, process: Process) -> None:
        for line in process.read_log():
            self._on_log(process.name, line)
        if process.output_closed:
            self._unregister(process.output)

    def _unregister(self, end: IO[bytes] | socket.socket) -> None:
        if end in self._selector.get_map():
            self._selector.unregister(end)

    def _on_death(self, process: Process, death: str, now: float) -> None:
        self._forget(process)
        hopeless = process.exit_code == CONFIG_ERROR_CODE and process.name not in self._have_served
        if hopeless or not self._restart:
            raise GaveUp(_obituary(process, f"died ({death})"))
        starting_s = (process.ready_at or now) - process.started
        delay_s = self._backoff[process.name].delay_after_death(now, starting_s)
        if delay_s is None:
            raise GaveUp(_obituary(process, f"died three times within a minute, the last time: {death}"))
        log.error("%s; it starts again in %.1f s", _obituary(process, f"died ({death})"), delay_s)
        self._due[process.name] = now + delay_s

    def _forget(self, process: Process) -> None:
        self._unregister(process.output)
        self._unregister(process.line)
        process.close()
        del self._running[process.name]

    def _announce(self) -> None:
        facts = {name: process.facts for name, process in self._running.items() if process.facts is not None}
        if not self._announced and len(facts) == len(self._specs):
            self._announced = True
            self._on_ready(facts)

    def _stop_in_order(self) -> None:
        """Those that `stop_first` get the drain timeout to themselves, then the others."""
        log.info("ending; running answers get up to %.0f s", self._drain_timeout_s)
        self._stop_all([process for process in self._running.values() if process.spec.stop_first])
        self._stop_all(list(self._running.values()))

    def _stop_all(self, processes: list[Process]) -> None:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        deadline = self._clock() + self._drain_timeout_s + KILL_GRACE_S
        while processes and self._num_stops < 2 and self._clock() < deadline:
            self._wait()
            for process in list(processes):
                ended = process.death()
                self._pass_on(process)
                if ended is not None:
                    processes.remove(process)
                    self._forget(process)
        for process in processes:
            log.warning("%s did not end in time and is killed", process.name)
            self._forget(process)


def _closed(line: socket.socket) -> bool:
    try:
        return not line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def _obituary(process: Process, what: str) -> str:
    lines = "".join(f"\n    {line}" for line in process.last_lines)
    said = f"; its last lines:{lines}" if lines else "; it had written nothing"
    return f"{process.name} {what}{said}"


class StopOnSignals:
    """While entered, SIGTERM and SIGINT stop the supervisor instead of ending this process."""

    def __init__(self, supervisor: Supervisor):
        self._supervisor = supervisor
        self._restore = ExitStack()

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._restore.callback(signal.signal, number, signal.signal(number, self._on_signal))

    def __exit__(self, *_: object) -> None:
        self._restore.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._supervisor.stop()
