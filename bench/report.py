"""A benchmark's report: a table in Markdown, with what is needed to run it again."""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing: ours beside the peer's, as text with units, and what became of the budget."""

    what: str
    ours: str
    peer: str
    compared: str
    """Ratio or difference."""
    budget: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Report:
    title: str
    rows: Sequence[Row]
    notes: Sequence[str]
    packages: Sequence[str]
    """Whose versions matter."""
    load_average: float
    """Over the minute before: how busy others kept the machine."""

    def markdown(self) -> str:
        lines = [
            f"# {self.title}",
            "",
            "```",
            command_line(),
            "```",
            self.device() + ".",
            versions(self.packages) + ".",
            "",
        ]
        lines += ["| | Isthmus | peer (ceiling) | compared | budget | |", "|---|---|---|---|---|---|"]
        lines += [f"| {r.what} | {r.ours} | {r.peer} | {r.compared} | {r.budget} | {verdict(r)} |" for r in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])

    def device(self) -> str:
        """CPU, cores, system, and how busy they were."""
        system = platform.system()
        return f"{cpu_model()}, {os.cpu_count()} cores, {system}, load average {self.load_average:.2f} before the run"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "command": command_line(), "device": self.device(), "versions": versions(self.packages)}


def verdict(row: Row) -> str:
    return "" if row.met is None else "met" if row.met else "missed"


def command_line() -> str:
    """The command to repeat this; paths as they were given."""
    module = sys.modules["__main__"].__spec__
    program = f"python -m {module.name}" if module else Path(sys.argv[0]).name
    return shlex.join([*program.split(), *sys.argv[1:]])


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(packages: Sequence[str]) -> str:
    each = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *each])
