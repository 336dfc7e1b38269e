"""Servers for clients: started with ISTHMUS_PYTHON, the Python that has Isthmus, as processes of their own."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("ISTHMUS_PYTHON", str(ROOT / ".venv" / "bin" / "python"))

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices when it is imported


@contextmanager
def started(*arguments: str) -> Iterator[str]:
    """The URL that `python -m ARGUMENTS` prints first, while it serves there."""
    command = [PYTHON, "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield read_url(process)
        finally:
            process.terminate()
            process.communicate(timeout=30)


def read_url(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"https?://\S+", line):
            return found[0]
    raise AssertionError("".join(lines))


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The router before an obedient model; its keys are sk-good, and sk-spent, which allows one request a minute."""
    with started("isthmus.tests.clients.obedient_server") as found:
        yield found


@pytest.fixture(scope="session")
def keyless_url() -> Iterator[str]:
    """The same for clients that can send no key."""
    with started("isthmus.tests.clients.obedient_server", "--keyless") as found:
        yield found


@pytest.fixture(scope="session")
def demo_url() -> Iterator[str]:
    """`isthmus serve` as a user starts it, with the demo model."""
    with started("isthmus.launch.main", "serve", "--port", "0") as found:
        yield found
