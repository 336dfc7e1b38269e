"""A GPU's memory, divided between the workers on it before any of them has loaded. Pure.

Only a worker that has loaded the model and run its largest step knows what is left for KV. `serve` has to know before
how long a request may be, and what each worker of a shared GPU may take: so it reckons, on the careful side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from ..wire.messages import Role
from .limits import StepLimits
from .resolve import ConfigError

GIB = 1 << 30
FIXED_BYTES = 2 * GIB
"""Of each process: CUDA's context and kernels, workspaces of libraries, CUDA graphs, fragmentation."""
KV_PARTS: dict[Role, int] = {"prefill": 1, "decode": 2}
"""How workers of one GPU share what is left for KV: answers stay on a decode worker, a prompt is soon gone."""
SHARE_STEPS = 10_000
"""Shares are rounded down to whole steps, so that together they are never more than there is."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes of a GPU beside its KV."""

    weight_bytes: int
    bytes_per_batched_token: int
    """Activations of a step."""
    bytes_per_seq: int
    """Logits of a step, with what sampling makes of them."""

    def of_worker(self, limits: StepLimits) -> int:
        step = limits.max_num_batched_tokens * self.bytes_per_batched_token + limits.max_num_seqs * self.bytes_per_seq
        return self.weight_bytes + step + FIXED_BYTES


def shares(roles: Sequence[Role], fixed_bytes: Sequence[int], budget_bytes: int) -> list[float]:
    """The part of a GPU's `budget_bytes` that each worker on it gets: what it takes in any case, and of the rest as
    many parts as its role has. Raises ConfigError if there is no rest."""
    rest = budget_bytes - sum(fixed_bytes)
    if rest <= 0:
        raise ConfigError(_too_small(roles, fixed_bytes, budget_bytes))
    if len(roles) == 1:
        return [1.0]
    num_parts = sum(KV_PARTS[role] for role in roles)
    wanted = [fixed + rest * KV_PARTS[role] / num_parts for role, fixed in zip(roles, fixed_bytes, strict=True)]
    return [floor(num_bytes / budget_bytes * SHARE_STEPS) / SHARE_STEPS for num_bytes in wanted]


def _too_small(roles: Sequence[Role], fixed_bytes: Sequence[int], budget_bytes: int) -> str:
    need = f"{gib(sum(fixed_bytes))} before any KV, and --gpu-memory-utilization allows {gib(budget_bytes)}"
    if len(roles) == 1:
        return f"the model does not fit the GPU: a {roles[0]} worker takes about {need}"
    return (
        f"{len(roles)} workers do not fit one GPU, each with its own copy of the weights: {' and '.join(roles)} take "
        f"about {need}; on one GPU, --prefill 0 holds the weights once"
    )


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
