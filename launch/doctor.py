"""`isthmus doctor`: what this machine has for Isthmus, and what is wrong with it."""

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict

from .. import __version__
from .config import DoctorConfig
from .diagnosis import Diagnosis, Pair, diagnose, measure_transfer
from .gpu_memory import gib
from .gpus import Gpu


def doctor(config: DoctorConfig) -> int:
    """Prints what it finds; the exit code is 1 if something has to be put right."""
    found = diagnose(measure_transfer if config.doctor.measure else None)
    problems = found.problems()
    if config.doctor.json:
        print(json.dumps({"isthmus": __version__, **asdict(found), "problems": problems}, indent=2))
    else:
        print("\n".join(lines(found)))
    for problem in problems:
        print(f"isthmus doctor: {problem}", file=sys.stderr)
    return 1 if problems else 0


def lines(found: Diagnosis) -> Iterator[str]:
    hardware, workers = found.hardware, found.workers
    yield _line(
        "isthmus", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    yield _line("CPU", f"{_count(hardware.num_cores, 'core')}, {gib(hardware.free_memory_bytes)} free")
    yield _line("workers", _workers(found))
    yield _line("shm", "KV can move through shared memory" if found.shared_memory == "ok" else found.shared_memory)
    yield _line("torch", _torch(found))
    if workers.device == "cpu":
        yield _line("GPU", f"none to use: {hardware.why_no_gpu}")
    if found.survey.driver:
        yield _line("driver", f"{found.survey.driver}, runs CUDA up to {_dotted(found.survey.cuda or ())}")
    yield from (_line(f"GPU {gpu.index}", _gpu(gpu)) for gpu in found.survey.gpus)
    yield from (_line(f"GPU {pair.link.first}-{pair.link.second}", _pair(pair)) for pair in found.pairs)


def _line(name: str, text: str) -> str:
    return f"{name:<9}{text}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _workers(found: Diagnosis) -> str:
    workers = found.workers
    roles = f"isthmus serve starts {workers.num_prefill} prefill + {workers.num_decode} decode"
    return f"{roles}, {_count(workers.num_threads, 'thread')} each ({workers.reason})"


def _torch(found: Diagnosis) -> str:
    torch = found.torch
    if isinstance(torch, str):
        return torch
    if torch.cuda is None:
        return f"{torch.version}, without CUDA"
    nccl = f"NCCL {torch.nccl} ({', '.join(torch.libnccl)})" if torch.nccl else "no NCCL"
    return f"{torch.version} with CUDA {torch.cuda} and {nccl}"


def _gpu(gpu: Gpu) -> str:
    memory = f"{gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free"
    return f"{gpu.name}, compute capability {_dotted(gpu.capability)}, {memory}, {gpu.pci_bus_id}, {gpu.uuid}"


def _pair(pair: Pair) -> str:
    link = _count(pair.link.num_nvlinks, "NVLink") if pair.link.num_nvlinks else "PCIe"
    access = "peer access" if pair.link.peer_access else "no peer access"
    rates = [f"{name} {_rate(rate)}" for name, rate in pair.gb_per_s.items()]
    return ", ".join((link, access, f"KV by {' or '.join(pair.transports)}", *rates))


def _rate(rate: float | str) -> str:
    return f"{rate:.0f} GB/s" if isinstance(rate, float) else f"not measured ({rate})"
