"""`isthmus serve` as a user starts it, with the fake engine: answers, deaths, restarts, the end."""

import json
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from isthmus.tests.helpers import demo_model_path
from isthmus.tests.serving import Serve, serving


@pytest.fixture(scope="module")
def stack() -> Iterator[Serve]:
    """One prefill and one decode worker, shared by the tests that leave it as it was."""
    with serving("--engine", "fake", "--served-model-name", "demo", "other") as serve:
        assert serve.url
        yield serve


def test_it_says_when_and_where_it_is_ready_and_what_to_try(stack: Serve) -> None:
    workers = r"1 prefill \+ 1 decode workers, \d+ threads? each; default: one of each on CPUs"
    stack.wait_for(rf"Ready: demo at http://127.0.0.1:\d+ \({workers}\)")
    curl = stack.wait_for(r"  curl (http\S+) .* -d '(.*)'")
    body = json.loads(curl[2])
    request = urllib.request.Request(curl[1], json.dumps({**body, "max_tokens": 3}).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        assert json.load(response)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("name", ["decode-0", "prefill-0", "router"])
def test_a_killed_child_is_named_and_replaced_and_answers_stay_the_same(stack: Serve, name: str) -> None:
    before = stack.complete(prompt="word " * 200)["choices"]
    killed = stack.child(name)
    assert killed is not None
    killed.kill()
    stack.wait_for(rf"{name} died \(killed by SIGKILL\)")
    stack.wait(lambda: (child := stack.child(name)) is not None and child.pid != killed.pid)
    stack.wait(stack.healthy)
    assert stack.complete(prompt="word " * 200)["choices"] == before
    assert stack.process.poll() is None


def test_a_worker_that_differs_is_refused_with_a_sentence(stack: Serve) -> None:
    router = stack.child("router")
    assert router is not None
    address = next(text for text in router.cmdline() if text.startswith("--worker-address="))
    command = [sys.executable, "-m", "isthmus.launch.main", "decode", "--engine", "fake", "--block-size", "32"]
    done = subprocess.run(
        [*command, "--router", address.partition("=")[2]], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "the router refuses this worker" in done.stderr
    assert "this router serves block size 16, the worker has 32" in done.stderr
    assert "Traceback" not in done.stderr
    assert stack.complete()["usage"]["completion_tokens"] == 5


def test_told_to_end_it_lets_running_answers_finish_and_leaves_nothing_behind() -> None:
    with serving("--engine", "fake", "--prefill", "0", "--fake-step-s", "0.05") as serve:
        assert serve.url
        children = psutil.Process(serve.process.pid).children(recursive=True)
        answers: list[dict[str, Any]] = []
        client = threading.Thread(target=lambda: answers.append(serve.complete(max_tokens=30)))
        client.start()
        serve.wait(lambda: re.search(rb"^isthmus:num_requests_running.* 1.0$", serve.metrics(), re.MULTILINE))
        assert serve.end() == 0
        client.join()
    assert answers[0]["usage"]["completion_tokens"] == 30
    assert len(children) == 2
    assert not any(child.is_running() for child in children)


def test_no_restart_ends_all_when_one_dies() -> None:
    with serving("--engine", "fake", "--prefill", "0", "--no-restart") as serve:
        assert serve.url
        worker = serve.child("decode-0")
        assert worker is not None
        worker.kill()
        assert serve.wait_for_end() == 1
        assert "decode-0 died (killed by SIGKILL)" in serve.text


def test_a_port_in_use_is_one_sentence_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = serve_once(str(demo_model_path()), "--port", port)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose another --port" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def serve_once(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isthmus.launch.main", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such/model.gguf"], "there is no model at 'no/such/model.gguf'"),
        (["--max-model-len", "100000"], "--max-model-len 100000 is more than the model's"),
        (["--speculative-method", "draft"], "--speculative-method draft needs a --speculative-model"),
        (
            ["--speculative-model", "no/such/small.gguf"],
            "--speculative-model: there is no model at 'no/such/small.gguf'",
        ),
        (["--num-blocks", "4", "--max-model-len", "100"], "--max-model-len 100 does not fit: the KV cache"),
    ],
)
def test_what_cannot_work_is_one_sentence_at_once(arguments: list[str], said: str) -> None:
    model = [] if arguments[0].endswith(".gguf") else [str(demo_model_path())]
    done = serve_once(*arguments, *model)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
