"""What torch brings along, asked in a process of its own, because importing it takes seconds and much memory.

python -m isthmus.launch.torch_facts     prints a `TorchFacts` as JSON
"""

import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

MAPS = Path("/proc/self/maps")
NCCL_PACKAGE = "nvidia-nccl-"


@dataclass(frozen=True, slots=True)
class TorchFacts:
    version: str
    cuda: str | None
    """That it is built for."""
    nccl: str | None
    """Version that it runs with."""
    libnccl: tuple[str, ...]
    """Every libnccl that is loaded with it."""


def read_torch_facts() -> TorchFacts:
    """Loads torch."""
    import torch

    nccl = torch.cuda.nccl.version() if torch.version.cuda and torch.distributed.is_nccl_available() else None
    version = None if nccl is None else ".".join(map(str, nccl))
    return TorchFacts(str(torch.__version__), torch.version.cuda, version, loaded_libnccl(MAPS.read_text()))


def loaded_libnccl(maps: str) -> tuple[str, ...]:
    """From a process's memory map. Plugins, such as libnccl-net.so, do not count."""
    paths = (line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/libnccl.so" in line)
    return tuple(dict.fromkeys(paths))


def nccl_packages() -> tuple[str, ...]:
    """Installed Python packages that own a libnccl, `nvidia-nccl-cu13 2.28.9`. Needs no torch."""
    found = {
        dist.metadata["Name"].lower().replace("_", "-"): dist.version
        for dist in metadata.distributions()
        if dist.metadata["Name"]
    }
    return tuple(f"{name} {found[name]}" for name in sorted(found) if name.startswith(NCCL_PACKAGE))


if __name__ == "__main__":
    print(json.dumps(asdict(read_torch_facts())))
