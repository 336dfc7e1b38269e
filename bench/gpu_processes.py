"""Processes that each do something to a GPU when told to, and that may be killed: lines of JSON in and out."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def say(**row: object) -> None:
    print(json.dumps(row), flush=True)


def hear(timeout_s: float | None = None) -> Row | None:
    """The next command from the parent; None if there is none in time."""
    if not select.select([0], [], [], timeout_s)[0]:
        return None
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(0)
        line += byte
    command: Row = json.loads(line)
    return command


class Child:
    """A process that imports torch at once and waits for its role, so that starting many takes no time later."""

    def __init__(self, logs: Path, name: str):
        self.name = name
        self._log = (logs / f"{name}.log").open("wb")
        command = [sys.executable, "-m", "isthmus.bench.ipc_death", "--child"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        self._buffer = b""

    def tell(self, **command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, timeout_s: float = 40.0) -> Row:
        """Raises TimeoutError, or EOFError if the process ended."""
        row = self.peek(timeout_s)
        if row is None:
            raise TimeoutError(f"{self.name} said nothing for {timeout_s} s")
        return row

    def peek(self, timeout_s: float) -> Row | None:
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            read = os.read(self._process.stdout.fileno(), 1 << 16)
            if not read:
                raise EOFError(f"{self.name} ended with {self._process.wait()}")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        row: Row = json.loads(line)
        return row

    def ask(self, timeout_s: float = 40.0, **command: object) -> Row:
        self.tell(**command)
        return self.answer(timeout_s)

    def kill(self) -> float:
        """SIGKILL; seconds until the process was gone."""
        at = time.monotonic()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return time.monotonic() - at

    def alive(self) -> bool:
        return self._process.poll() is None


def attempt(work: Callable[[], object]) -> str | None:
    """Runs it; the error, if there was one."""
    try:
        work()
    except Exception as error:  # whatever a broken context raises is the answer
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def touch(device: int) -> None:
    """Makes the device's context current and proves that it computes."""
    torch.cuda.set_device(device)
    a = torch.ones(1024, 1024, device="cuda")
    assert float((a @ a).sum()) == 1024**3
    torch.cuda.synchronize()


class Bench:
    def __init__(self, out: Path):
        self._out = (out / "ipc_death.jsonl").open("w")
        self._logs = out
        self._spare: list[Child] = []
        self._num_children = 0

    def prepare(self, count: int) -> None:
        for _ in range(count):
            self._num_children += 1
            self._spare.append(Child(self._logs, f"child{self._num_children:02}"))

    def child(self, **role: object) -> Child:
        if not self._spare:
            self.prepare(1)
        child = self._spare.pop(0)
        child.name += f" ({role['role']})"
        child.tell(**role)
        return child

    def note(self, question: str, **row: object) -> None:
        self._out.write(json.dumps({"question": question, **row}) + "\n")
        self._out.flush()
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print(f"{question}: " + ", ".join(f"{k} {v}" for k, v in shown.items()), flush=True)

    @contextmanager
    def question(self, name: str) -> Iterator[list[Child]]:
        """Its processes end with it; what went wrong is its answer."""
        children: list[Child] = []
        at = time.monotonic()
        try:
            yield children
        except Exception as error:
            self.note(name, verdict="FAILED", error=f"{type(error).__name__}: {error}")
        finally:
            for child in children:
                child.kill()
            print(f"-- {name}: {time.monotonic() - at:.1f} s", flush=True)

    def close(self) -> None:
        for child in self._spare:
            child.kill()
