"""What this process may use of the machine: cores, memory and GPUs, container limits included."""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .gpus import Gpu, GpuSurvey, survey_gpus

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
MIN_CAPABILITY = (8, 0)
"""Compute capability that the kernels need: bfloat16 in the matrix units came with Ampere."""


@dataclass(frozen=True, slots=True)
class Hardware:
    num_cores: int
    free_memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    """That the engine can use."""
    why_no_gpu: str = ""


def probe() -> Hardware:
    gpus, why = usable(survey_gpus(), torch_cuda())
    return Hardware(num_cores(), free_memory_bytes(), gpus, why)


def usable(survey: GpuSurvey, cuda: str | None) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that the engine can use, with torch's version of CUDA; if there are none, why."""
    if not survey.gpus:
        return (), survey.why_none
    if cuda is None:
        return (), "torch is a build without CUDA"
    gpus = tuple(gpu for gpu in survey.gpus if gpu.capability >= MIN_CAPABILITY)
    needed = ".".join(map(str, MIN_CAPABILITY))
    return gpus, "" if gpus else f"{survey.gpus[0].name} has a compute capability below {needed}"


def torch_cuda(version_file: Path | None = None) -> str | None:
    """The CUDA that torch is built for, `13.0`; None for a build without. Read from its version.py: importing torch
    takes seconds, and not every process needs it."""
    if version_file is None:
        spec = importlib.util.find_spec("torch")
        version_file = Path(spec.origin).parent / "version.py" if spec and spec.origin else Path()
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", _read(version_file), re.MULTILINE)
    return found[1] if found else None


def num_cores(cgroup: Path = CGROUP) -> int:
    """Cores this process may run on, at most what the container's CPU quota pays for, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(cgroup / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        allowed = min(allowed, int(quota[0]) // int(quota[1]))
    return max(1, allowed)


def free_memory_bytes(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> int:
    """Memory that is free or can be freed at once, at most what the container's limit leaves."""
    free = _available(meminfo)
    limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def _available(meminfo: Path) -> int:
    for line in _read(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # not Linux: half of what is built in


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
