"""What this process may use of the machine: cores, memory and GPUs, container limits included."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
DEVICES = Path("/dev")

ENGINE_USES_GPUS = False
"""Workers compute on the CPU, whatever else the machine has. As long as that is so, `probe` reports no GPU."""


@dataclass(frozen=True, slots=True)
class Hardware:
    num_cores: int
    free_memory_bytes: int
    num_gpus: int
    """That the engine can use."""


def probe() -> Hardware:
    return Hardware(num_cores(), free_memory_bytes(), num_gpus() if ENGINE_USES_GPUS else 0)


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


def num_gpus(devices: Path = DEVICES, given: Mapping[str, str] = os.environ) -> int:
    """NVIDIA GPUs this process may use: those with a device file, less what the environment hides.

    NVIDIA_VISIBLE_DEVICES is for container runtimes (`all`, `none`, or a list; `void` means that another mechanism
    chose), CUDA_VISIBLE_DEVICES for CUDA: a list of indices and UUIDs that ends at the first one that is not valid.
    """
    present = sum(bool(re.fullmatch(r"nvidia\d+", entry.name)) for entry in devices.glob("nvidia*"))
    match given.get("NVIDIA_VISIBLE_DEVICES", "all"):
        case "none":
            return 0
        case "" | "void" | "all":
            pass
        case listed:
            present = min(present, len(_entries(listed)))
    if "CUDA_VISIBLE_DEVICES" not in given:
        return present
    return min(present, _num_valid(_entries(given["CUDA_VISIBLE_DEVICES"]), present))


def _entries(listed: str) -> list[str]:
    return [entry.strip() for entry in listed.split(",")]


def _num_valid(entries: list[str], num_devices: int) -> int:
    """How many there are before the first that names no device, or one that was named before."""
    seen: set[str] = set()
    for entry in entries:
        known = entry.startswith(("GPU-", "MIG-")) or (entry.isdecimal() and int(entry) < num_devices)
        if not known or entry in seen:
            break
        seen.add(entry)
    return len(seen)


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
