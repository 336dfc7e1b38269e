"""Ways to divide the same cores that are compared, each started as `isthmus serve` starts it."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..launch.arguments import add_config, read_config
from ..launch.config import ServeConfig
from ..launch.hardware import probe
from ..launch.process import ProcessSpec
from ..launch.serve import process_specs, settle
from ..launch.threads import thread_environment
from .servers import MODEL_NAME, Server
from .stack import Stack

PROC = Path("/proc")
SEGMENT = b"memfd:isthmus-kv"
"""How the memory map of a process shows that it moves KV through shared memory."""


@dataclass(frozen=True, slots=True)
class Topology:
    name: str
    arguments: tuple[str, ...]
    """Of `isthmus serve`, beside those all have in common."""
    num_threads: int
    """Of each worker, whatever the environment says."""


@dataclass(frozen=True, slots=True)
class Running:
    """A topology whose processes are ready."""

    topology: Topology
    stack: Stack
    processes: tuple[str, ...]
    server: Server
    address: str
    """At which its workers reach its router: only they have it on their command lines."""

    def cpu_s(self) -> float:
        """Seconds of CPU that all its processes have used so far."""
        return sum(self.stack.cpu_s(name) for name in self.processes)

    def transport(self) -> str:
        """What moves its KV, once some has moved: its workers share memory or they do not."""
        return "shm" if any(SEGMENT in maps for maps in memory_maps(self.address)) else "zmq"


@contextmanager
def running(topology: Topology, common: Sequence[str], folder: Path) -> Iterator[Running]:
    """Started, and ended at the end. `common`: arguments for `isthmus serve`; `folder`: an empty one of its own."""
    address = f"ipc://{folder}/router"
    specs = process_specs_of(topology, [*common, "--worker-address", address], folder)
    with Stack(specs) as stack:
        server = Server("router", stack.port("router"), "/v1/completions")
        yield Running(topology, stack, tuple(spec.name for spec in specs), server, address)


def process_specs_of(topology: Topology, common: Sequence[str], folder: Path) -> list[ProcessSpec]:
    """The processes of `isthmus serve` with these arguments."""
    config = read_serve_config([*common, *topology.arguments, "--port", "0", "--served-model-name", MODEL_NAME])
    threads = thread_environment(topology.num_threads, given={})
    specs = process_specs(settle(config, probe(), folder))
    return [spec if spec.name == "router" else replace(spec, environment=threads) for spec in specs]


def read_serve_config(arguments: Sequence[str]) -> ServeConfig:
    parser = argparse.ArgumentParser("isthmus serve", allow_abbrev=False)
    add_config(parser, ServeConfig)
    return read_config(ServeConfig, parser.parse_args(arguments))


def memory_maps(argument: str) -> Iterator[bytes]:
    """Those of all processes that have `argument` on their command lines."""
    for process in PROC.glob("[0-9]*"):
        try:
            if argument.encode() in (process / "cmdline").read_bytes():
                yield (process / "maps").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended meanwhile, or is another user's
