"""Which machine this is."""

from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """The same for every process of this host until it restarts, in containers too; empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
