"""The supervisor, with small python processes in place of routers and workers, killed in every way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from isthmus.launch.process import ProcessSpec
from isthmus.launch.supervisor import GaveUp, StopOnSignals, Supervisor

PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from isthmus.launch.child import Lifeline
lifeline = Lifeline.from_environment()
"""
SLEEP = "lifeline.ready(pid=os.getpid())\ntime.sleep(60)"


def spec(name: str, script: str, **rest: Any) -> ProcessSpec:
    return ProcessSpec(name, [sys.executable, "-c", PRELUDE + script], **rest)


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)
    return found


class Running:
    """A supervisor in a thread of its own, and what it reported."""

    def __init__(self, specs: list[ProcessSpec], *, restart: bool = True, drain_timeout_s: float = 5.0):
        self.lines: list[tuple[str, str]] = []
        self.ready: list[dict[str, Any]] = []
        self.gave_up: str | None = None
        self.supervisor = Supervisor(
            specs,
            restart=restart,
            drain_timeout_s=drain_timeout_s,
            on_log=lambda name, line: self.lines.append((name, line)),
            on_ready=self.ready.append,
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except GaveUp as death:
            self.gave_up = str(death)

    def end(self) -> None:
        self.supervisor.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextmanager
def running(*specs: ProcessSpec, **rest: Any) -> Iterator[Running]:
    one = Running(list(specs), **rest)
    one.thread.start()
    try:
        yield one
    finally:
        one.end()


def test_all_ready_is_announced_once_with_what_each_said() -> None:
    with running(spec("a", SLEEP), spec("b", "print('loading')\n" + SLEEP)) as one:
        wait_for(lambda: one.ready)
        pids = one.supervisor.pids
    assert one.ready == [{name: {"pid": pid} for name, pid in pids.items()}]
    assert ("b", "loading") in one.lines
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


def test_a_killed_process_is_named_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    with running(spec("a", SLEEP), spec("b", "print('last words')\n" + SLEEP)) as one:
        wait_for(lambda: one.ready)
        before = one.supervisor.pids
        os.kill(before["b"], signal.SIGKILL)
        wait_for(lambda: one.supervisor.pids.get("b", before["b"]) != before["b"])
        assert one.supervisor.pids["a"] == before["a"]
    (death,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "b died (killed by SIGKILL)" in death
    assert "last words" in death


def test_no_restart_ends_all_at_the_first_death() -> None:
    one = Running([spec("a", SLEEP), spec("b", "sys.exit('no such model')")], restart=False)
    one.thread.start()
    one.thread.join(20)
    assert one.gave_up is not None
    assert one.gave_up.startswith("b died (exit code 1); its last lines:")
    assert "no such model" in one.gave_up
    assert one.supervisor.pids == {}


def test_three_deaths_within_a_minute_are_the_end(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    script = f"open({str(starts)!r}, 'a').write('x')\nprint('attempt')\nos.kill(os.getpid(), signal.SIGSEGV)"
    one = Running([spec("a", SLEEP), spec("b", script)])
    one.thread.start()
    one.thread.join(30)
    assert one.gave_up is not None
    assert "b died three times" in one.gave_up
    assert "SIGSEGV" in one.gave_up
    assert "attempt" in one.gave_up
    assert starts.read_text() == "xxx"
    assert one.supervisor.pids == {}


def test_a_process_that_is_configured_wrong_is_not_started_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    script = f"open({str(starts)!r}, 'a').write('x')\nprint('no such model')\nsys.exit(2)"
    one = Running([spec("a", SLEEP), spec("b", script)])
    one.thread.start()
    one.thread.join(20)
    assert one.gave_up is not None
    assert "no such model" in one.gave_up
    assert starts.read_text() == "x"


def test_what_has_served_is_started_again_whatever_it_says(tmp_path: Path) -> None:
    """It worked as it was configured: what it lacks now, memory say, may come back."""
    starts = tmp_path / "starts"
    script = f"""
starts = Path({str(starts)!r})
starts.write_text(starts.read_text() + 'x' if starts.exists() else 'x')
match len(starts.read_text()):
    case 1:
        lifeline.ready()
        time.sleep(0.3)
        sys.exit(1)
    case 2:
        sys.exit(2)
"""
    with running(spec("a", script + SLEEP)) as one:
        wait_for(lambda: starts.exists() and starts.read_text() == "xxx")
        assert one.gave_up is None


def test_not_ready_in_time_counts_as_a_death() -> None:
    one = Running([spec("slow", "time.sleep(60)", ready_timeout_s=0.3)], restart=False)
    one.thread.start()
    one.thread.join(20)
    assert one.gave_up is not None
    assert "not ready after" in one.gave_up


def test_the_first_to_stop_has_ended_before_the_others_are_told(tmp_path: Path) -> None:
    def noted(name: str, delay_s: float) -> str:
        return f"""
def end(number, frame):
    time.sleep({delay_s})
    with open({str(tmp_path / "order")!r}, "a") as file: file.write("{name} ")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
{SLEEP}"""

    with running(spec("worker", noted("worker", 0)), spec("router", noted("router", 0.3), stop_first=True)) as one:
        wait_for(lambda: one.ready)
    assert (tmp_path / "order").read_text() == "router worker "


def test_what_ignores_sigterm_is_killed_by_the_second_stop() -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\n" + SLEEP
    with running(spec("a", stubborn), drain_timeout_s=60) as one:
        wait_for(lambda: one.ready)
        pid = one.supervisor.pids["a"]
        one.supervisor.stop()
        begun = time.monotonic()
        one.end()
    assert time.monotonic() - begun < 10
    assert not psutil.pid_exists(pid)


def test_a_death_loses_no_output() -> None:
    script = "print('x' * 300_000)\nsys.stdout.write('without newline')"
    one = Running([spec("a", script)], restart=False)
    one.thread.start()
    one.thread.join(20)
    written = "".join(line for _, line in one.lines)
    assert written == "x" * 300_000 + "without newline"


def test_children_end_with_their_supervisor(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"""
import sys
from isthmus.launch.process import ProcessSpec
from isthmus.launch.supervisor import Supervisor
def ready(facts):
    open({str(pids)!r}, "w").write(" ".join(str(fact["pid"]) for fact in facts.values()) + ".")
child = {PRELUDE + SLEEP!r}
specs = [ProcessSpec(name, [sys.executable, "-c", child]) for name in ("a", "b")]
Supervisor(specs, restart=True, drain_timeout_s=5, on_log=print, on_ready=ready).run()
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_for(lambda: pids.exists() and pids.read_text().endswith("."))
        children = [int(pid) for pid in pids.read_text().rstrip(".").split()]
        assert all(psutil.pid_exists(pid) for pid in children)
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_for(lambda: not any(_runs(pid) for pid in children))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it(number: signal.Signals) -> None:
    one = Supervisor(
        [spec("a", SLEEP)],
        restart=True,
        drain_timeout_s=5,
        on_log=lambda name, line: None,
        on_ready=lambda facts: os.kill(os.getpid(), number),
    )
    before = signal.getsignal(number)
    with StopOnSignals(one):
        one.run()
    assert signal.getsignal(number) == before
    assert one.pids == {}
