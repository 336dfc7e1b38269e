"""What `isthmus doctor` finds out: the machine as the workers would use it, and what is wrong with it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import DeviceOptions, EngineOptions, TopologyOptions
from .gpus import CUDA_ENVIRONMENT, GpuSurvey, Link, survey_gpus
from .hardware import Hardware, free_memory_bytes, num_cores, torch_cuda, usable
from .resolve import GPU_TRANSPORTS, Resolved, resolve
from .torch_facts import TorchFacts, nccl_packages

CHILD_TIMEOUT_S = 120.0

Measure = Callable[[str, int, int], dict[str, float | str]]
"""(transport, GPU index, GPU index) -> GB/s from the first to the second, by it and by `copy`, or why not."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two GPUs, and how KV would move between workers on them."""

    link: Link
    transports: tuple[str, ...]
    """That work between them, the best first."""
    gb_per_s: dict[str, float | str]
    """Of each that goes from GPU to GPU, and of `copy`, a plain one, which bounds them: measured, or why not. Empty if
    nothing was to be measured."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    hardware: Hardware
    workers: Resolved
    """That `isthmus serve` would start."""
    shared_memory: str
    """`ok`, or why KV cannot move through it."""
    survey: GpuSurvey
    torch: TorchFacts | str
    """Or why it is not known."""
    nccl_packages: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()

    def problems(self) -> list[str]:
        """What has to be put right, in sentences."""
        found = []
        if isinstance(self.torch, str):
            found.append(f"torch cannot be loaded: {self.torch}")
        elif self.survey.gpus and self.torch.cuda is None:
            found.append(
                f"there are GPUs, but torch {self.torch.version} is a build without CUDA, so workers compute on the CPU"
            )
        if len(self.nccl_packages) > 1:
            found.append(
                f"{' and '.join(self.nccl_packages)} are both installed and write the same libnccl.so.2, so which one "
                "torch gets is a matter of chance: uninstall both, then reinstall torch"
            )
        if not isinstance(self.torch, str) and len(self.torch.libnccl) > 1:
            found.append(f"torch runs with more than one libnccl: {', '.join(self.torch.libnccl)}")
        return found


def diagnose(measure: Measure | None) -> Diagnosis:
    """`measure` None: no bandwidth is measured."""
    survey = survey_gpus(links=True)
    hardware = Hardware(num_cores(), free_memory_bytes(), *usable(survey, torch_cuda()))
    torch, shared_memory = ask_torch(), try_shared_memory()
    works = working_transports(torch, shared_memory)
    return Diagnosis(
        hardware,
        resolve(TopologyOptions(), EngineOptions(), DeviceOptions(), hardware),
        shared_memory,
        survey,
        torch,
        nccl_packages(),
        tuple(examine(link, works, measure) for link in survey.links),
    )


def examine(link: Link, works: Mapping[str, bool], measure: Measure | None) -> Pair:
    found = tuple(name for name, does in works.items() if does and (name != "cuda_ipc" or link.peer_access))
    rates: dict[str, float | str] = {}
    for name in GPU_TRANSPORTS:
        if measure and name in found:
            rates |= measure(name, link.first, link.second)
    return Pair(link, found, rates)


def working_transports(torch: TorchFacts | str, shared_memory: str) -> dict[str, bool]:
    """This version's transports, the best first, and whether this machine has what they need. GPUs apart."""
    from ..kvtransfer.open import TRANSPORTS

    cuda = not isinstance(torch, str) and torch.cuda is not None
    nccl = not isinstance(torch, str) and torch.nccl is not None
    missing = {"cuda_ipc": not cuda, "nccl": not nccl, "shm": shared_memory != "ok"}
    return {name: not missing.get(name, False) for name in TRANSPORTS}


def try_shared_memory() -> str:
    from ..kvtransfer.shm_receiver import ShmReceiver

    try:
        ShmReceiver(lambda: None).close()
    except OSError as error:
        return str(error)
    return "ok"


def ask_torch() -> TorchFacts | str:
    facts = ask_child("torch_facts")
    return facts if isinstance(facts, str) else TorchFacts(**{**facts, "libnccl": tuple(facts["libnccl"])})


def measure_transfer(transport: str, first: int, second: int) -> dict[str, float | str]:
    answer = ask_child("transfer_rate", transport, str(first), str(second))
    if isinstance(answer, str):
        return {transport: answer}
    return {transport: float(answer["gb_per_s"]), "copy": float(answer["copy_gb_per_s"])}


def ask_child(module: str, *arguments: str) -> dict[str, Any] | str:
    """What a module of this folder prints as JSON when it is run; why not, in a line, if it fails."""
    command = [sys.executable, "-m", f"isthmus.launch.{module}", *arguments]
    environment = {**os.environ, **CUDA_ENVIRONMENT}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=CHILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {CHILD_TIMEOUT_S:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
