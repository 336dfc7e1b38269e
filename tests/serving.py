"""`isthmus serve` in a process of its own, as a user starts it."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from isthmus.tests.helpers import demo_model_path


class Serve:
    """A running `isthmus serve`, with what it has printed; the demo model on a free port."""

    def __init__(self, *arguments: str):
        command = [sys.executable, "-m", "isthmus.launch.main", "serve", str(demo_model_path())]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._output:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> re.Match[str]:
        return self.wait(lambda: re.search(pattern, self.text), timeout_s)

    def wait(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None or condition(), self.text  # it will not happen any more
            time.sleep(0.02)
        return found

    @property
    def url(self) -> str:
        return self.wait_for(r"Ready: \S+ at (https?://\S+)")[1]

    def child(self, name: str) -> psutil.Process | None:
        """The child that serves as `router`, `prefill-0`, …"""
        wanted = name if name == "router" else f"--name={name}"
        for process in psutil.Process(self.process.pid).children():
            try:
                if "isthmus.launch.main" in process.cmdline() and wanted in process.cmdline():
                    return process
            except psutil.Error:
                continue
        return None

    def complete(self, **body: Any) -> dict[str, Any]:
        body = {"prompt": "Once upon a time", "max_tokens": 5, "seed": 1, **body}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=180) as response:  # a worker may start again meanwhile
            answer: dict[str, Any] = json.load(response)
        return answer

    def metrics(self) -> bytes:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as response:
            page: bytes = response.read()
        return page

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def end(self) -> int:
        """Tells it to end, unless it has; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait_for_end()

    def wait_for_end(self) -> int:
        try:
            code = self.process.wait(30)
        finally:
            self.process.kill()
            self._reader.join()
            self._output.close()
        return code


@contextmanager
def serving(*arguments: str) -> Iterator[Serve]:
    serve = Serve(*arguments)
    try:
        yield serve
    finally:
        serve.end()
