"""The house rules: folders, the arrows between them, what may load torch, and what the wheel holds."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ALL = frozenset(["bench", "router", "prefill", "decode", "engine", "kvtransfer", "text", "kernels", "wire"])
MAY_IMPORT = {
    "launch": ALL,
    "bench": ALL - {"bench"} | {"launch"},
    "router": {"text", "wire"},
    "prefill": {"engine", "kvtransfer", "wire"},
    "decode": {"engine", "kvtransfer", "text", "kernels", "wire"},
    "engine": {"text", "kernels", "wire"},
    "kvtransfer": {"kernels", "wire"},
    "text": {"wire"},
    "kernels": set(),
    "wire": set(),
}
TORCH_FREE_FOLDERS = ("launch", "router", "text", "wire")
TORCH_FREE_MODULES = ("decode.scheduler", "prefill.scheduler", "engine.block_pool", "engine.plan", "engine.fake_engine")


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(("isthmus", *path.relative_to(ROOT).with_suffix("").parts))


OURS = [path for folder in MAY_IMPORT for path in modules(folder)]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of each import in the file, those within functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names)


def imported_folders(path: Path) -> set[str]:
    """Our folders that the file imports from, its own left out. Names of the root package are in none."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for level, name in imports(path):
        if level:
            target = (*package[: len(package) - level + 1], *name.split("."))
            found.add(target[0])
    return found & MAY_IMPORT.keys() - {package[0]}


@pytest.mark.parametrize("path", OURS, ids=dotted)
def test_imports_follow_the_arrows(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    assert imported_folders(path) <= set(MAY_IMPORT[folder])


@pytest.mark.parametrize("path", OURS, ids=dotted)
def test_imports_between_our_folders_are_relative(path: Path) -> None:
    absolute = {name.split(".")[0] for level, name in imports(path) if level == 0}
    assert not absolute & {"isthmus", *MAY_IMPORT.keys() - {"kernels"}}


def test_the_arrows_are_read_right() -> None:
    assert imported_folders(ROOT / "launch" / "model.py") == {"engine", "text", "wire"}
    assert imported_folders(ROOT / "wire" / "codec.py") == set()


def test_only_the_root_has_an_init() -> None:
    folders = [*MAY_IMPORT, "tests", "deploy"]
    assert [path for folder in folders for path in (ROOT / folder).rglob("__init__.py")] == []


def test_pyproject_lists_every_folder_with_modules() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {dotted(path.parent) for path in OURS}
    assert set(listed) == {"isthmus", *found}


def python(script: str, *, cwd: Path = ROOT, path: Path | None = None) -> str:
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *script.split()] if script.startswith("-m ") else [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_router_text_wire_launch_and_schedulers_load_no_torch() -> None:
    names = [dotted(path) for folder in TORCH_FREE_FOLDERS for path in modules(folder)]
    names += [f"isthmus.{name}" for name in TORCH_FREE_MODULES]
    script = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    assert python(script + "print({'torch', 'triton'} & sys.modules.keys())") == "set()\n"


@pytest.mark.parametrize("name", ["decode.scheduler", "prefill.scheduler", "engine.block_pool"])
def test_schedulers_have_no_sockets(name: str) -> None:
    assert python(f"import sys, isthmus.{name}\nprint('zmq' in sys.modules)") == "False\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a clean export: a used tree's build folder would bring deleted modules back."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, folder / "export", ignore=unwanted, symlinks=True)
    python(f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})", cwd=folder / "export")
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = [ROOT / "__init__.py", *OURS, *(ROOT / "router" / "ui").iterdir()]
    assert packed == {f"isthmus/{path.relative_to(ROOT)}" for path in ours}


def test_the_wheel_runs(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    assert python("-m isthmus.launch.main --version", cwd=tmp_path, path=tmp_path).startswith("isthmus ")


def test_a_bare_checkout_runs(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "isthmus").symlink_to(ROOT)
    shown = python("-m isthmus.launch.main --version", cwd=tmp_path, path=tmp_path / "path")
    assert shown.startswith("isthmus ")
