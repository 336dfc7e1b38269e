"""The workers that `isthmus serve` starts: where each runs, and what it may take. Pure."""

from dataclasses import dataclass
from itertools import cycle, islice

from ..wire.messages import Role
from .config import EngineOptions, PlaceOptions
from .gpu_memory import Footprint, gib, shares
from .gpus import Gpu
from .limits import StepLimits, step_limits
from .resolve import Resolved


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    role: Role
    index: int
    """Among those of its role."""
    limits: StepLimits
    kv_bytes: int
    """For its KV cache; on a GPU an estimate."""
    num_threads: int
    gpu: Gpu | None = None
    gpu_memory_bytes: int = 0
    """It may use in all."""
    gpu_memory_share: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    @property
    def place(self) -> PlaceOptions:
        return PlaceOptions(self.gpu.index if self.gpu else None, self.gpu_memory_share)

    def __str__(self) -> str:
        """`prefill-0 on GPU 0 (NVIDIA L4), 20.3 GiB: steps of at most 8192 tokens, 256 answers at a time`"""
        if self.gpu:
            where = f"GPU {self.gpu.index} ({self.gpu.name}), {gib(self.gpu_memory_bytes)}"
        else:
            where = f"the CPU, {self.num_threads} thread{'s' * (self.num_threads != 1)}"
        tokens, seqs = self.limits.max_num_batched_tokens, self.limits.max_num_seqs
        return f"{self.name} on {where}: steps of at most {tokens} tokens, {seqs} answers at a time"


def plan_workers(
    resolved: Resolved, engine: EngineOptions, footprint: Footprint, gpu_memory_utilization: float
) -> list[WorkerPlan]:
    """Prefill workers first. Raises ConfigError if a GPU cannot hold those it is given to."""
    if resolved.device == "cuda":
        return _on_gpus(resolved, engine, footprint, gpu_memory_utilization)
    return [
        WorkerPlan(role, index, step_limits(engine, "cpu", role), resolved.kv_cache_memory_bytes, resolved.num_threads)
        for role, index in _roles(resolved)
    ]


def _roles(resolved: Resolved) -> list[tuple[Role, int]]:
    prefill: list[tuple[Role, int]] = [("prefill", index) for index in range(resolved.num_prefill)]
    return prefill + [("decode", index) for index in range(resolved.num_decode)]


def _on_gpus(resolved: Resolved, engine: EngineOptions, footprint: Footprint, utilization: float) -> list[WorkerPlan]:
    """The GPUs in turn: where there are fewer, prefill and decode workers share them with each other first."""
    roles = _roles(resolved)
    gpus = list(islice(cycle(resolved.gpus), len(roles)))
    limits = [step_limits(engine, "cuda", role) for role, _ in roles]
    fixed = [footprint.of_worker(one) for one in limits]
    plans: dict[int, WorkerPlan] = {}
    for gpu in dict.fromkeys(gpus):
        numbers = [number for number, its in enumerate(gpus) if its == gpu]
        budget = int(gpu.total_bytes * utilization)
        parts = shares([roles[number][0] for number in numbers], [fixed[number] for number in numbers], budget)
        for number, share in zip(numbers, parts, strict=True):
            num_bytes = int(budget * share)
            plans[number] = WorkerPlan(
                *roles[number],
                limits[number],
                kv_bytes=engine.kv_cache_memory_bytes or num_bytes - fixed[number],
                num_threads=resolved.num_threads,
                gpu=gpu,
                gpu_memory_bytes=num_bytes,
                gpu_memory_share=share,
            )
    return [plans[number] for number in range(len(roles))]
