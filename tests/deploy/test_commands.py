"""The commands of deploy/, run as they stand but for addresses and paths, outside Docker, with the fake engine."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from isthmus.launch.config import DEFAULT_PORT
from isthmus.launch.process import Process, ProcessSpec
from isthmus.tests.deploy.containers import compose, image_environment, only
from isthmus.tests.helpers import demo_model_path
from isthmus.tests.serving import serving

LOOPBACK = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
PROGRAM = {"isthmus": [sys.executable, "-m", "isthmus.launch.main"], "python": [sys.executable]}


def wait(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)
    return found


def health(port: int) -> int:
    """Exit code of the image's HEALTHCHECK, asking this port."""
    command = [word.replace(f":{DEFAULT_PORT}/", f":{port}/") for word in only("HEALTHCHECK").command]
    return subprocess.run([*PROGRAM[command[0]], *command[1:]], capture_output=True, check=False).returncode


class Stack:
    """The services of the compose file as processes of this machine."""

    def __init__(self, folder: Path, close: ExitStack):
        model = demo_model_path()
        self._services = compose(MODELS=str(model.parent), MODEL=model.name)["services"]
        self._places = {
            "/models/": f"{model.parent}/",
            "/cache": str(folder),
            "0.0.0.0": "127.0.0.1",
            ":2243": ":*",
            "eth0": LOOPBACK,
        }
        self._close = close
        self.running: dict[str, Process] = {}
        self.logs: dict[str, list[str]] = {}

    def start(self, name: str, *more: str) -> None:
        service = self._services[name]
        program, *fixed = only("ENTRYPOINT").command
        command = [*PROGRAM[program], *fixed, *map(self._here, service["command"]), *more]
        environment = {**image_environment(), **service.get("environment", {})}
        spec = ProcessSpec(name, command, {key: self._here(str(value)) for key, value in environment.items()})
        self.running[name] = self._close.enter_context(closing(Process(spec, time.monotonic())))
        self.logs[name] = []

    def _here(self, word: str) -> str:
        for there, here in self._places.items():
            word = word.replace(there, here)
        return word

    def ready(self, name: str) -> dict[str, Any]:
        """What the process said when it was ready."""

        def facts() -> bool:
            self.read_logs()
            assert self.running[name].death() is None, self.logs[name]
            return self.running[name].read_ready()

        wait(facts)
        said = self.running[name].facts
        assert said is not None
        return said

    def lead_to(self, router: str) -> None:
        """The address that the workers' compose network would resolve."""
        self._places = {"tcp://router:2243": router, **self._places}

    def read_logs(self) -> None:
        for name, process in self.running.items():
            self.logs[name] += process.read_log()

    def end(self, name: str) -> int:
        process = self.running[name]
        process.send_signal(signal.SIGTERM)

        def exit_code() -> bool:
            self.read_logs()
            return process.exit_code is not None

        wait(exit_code, 30)
        assert process.exit_code is not None
        return process.exit_code


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with ExitStack() as close:
        yield Stack(tmp_path, close)


def test_the_services_of_the_compose_file_answer_and_end(stack: Stack) -> None:
    stack.start("router", "--port", "0")
    router = stack.ready("router")
    port = router["port"]
    assert health(port) == 1  # no decode worker yet
    stack.lead_to(router["worker_address"])
    for name in ("prefill", "decode"):
        stack.start(name, "--engine", "fake")
    for name in ("prefill", "decode"):
        stack.ready(name)
    wait(lambda: health(port) == 0, 20)
    usages = [complete(port, word)["usage"] for word in (" word", " deed", " sign")]
    assert [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages] == [(200, 5)] * 3
    # 0 where a first token comes before the prefill worker's word.
    assert any(usage["timings"]["transfer_s"] > 0 for usage in usages)
    assert [stack.end(name) for name in ("prefill", "decode", "router")] == [0, 0, 0], stack.logs


def complete(port: int, word: str = " word") -> dict[str, Any]:
    """An answer to a prompt that is long enough for the prefill worker."""
    body = {"prompt": word * 200, "max_tokens": 5}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def test_the_command_of_the_image_serves() -> None:
    program, *arguments = (word.replace("0.0.0.0", "127.0.0.1") for word in only("CMD").command)
    assert program == "serve"
    with serving(*arguments, "--engine", "fake") as serve:
        assert serve.complete()["usage"]["completion_tokens"] == 5
        assert health(int(serve.url.rsplit(":", 1)[1])) == 0
        assert serve.end() == 0
