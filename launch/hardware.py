"""What this process may use of the machine: cores and memory, container limits included."""

import os
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Hardware:
    num_cores: int
    free_memory_bytes: int


def probe() -> Hardware:
    return Hardware(num_cores(), free_memory_bytes())


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
