"""How much of a GPU's memory is left for KV, from what the engine takes without it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

CONTEXT_BYTES = 700 << 20
"""What CUDA, cuBLAS, cuDNN and compiled kernels take outside torch's allocator."""
HEADROOM_BYTES = 300 << 20
"""Fragmentation, and what varies between steps."""


@dataclass(frozen=True, slots=True)
class Usage:
    weights_bytes: int
    step_bytes: int
    """At most, beside the weights, in the largest steps."""
    graph_bytes: int
    """Of captured steps, which keep theirs."""


def kv_bytes(usage: Usage, *, total_bytes: int, free_bytes: int, utilization: float, share: float) -> int:
    """Bytes for the KV pool: this worker's `share` of the part of the GPU's memory that may be used, less its own use;
    no more than is `free_bytes` now, while the weights are loaded. Negative if there is no room.
    """
    ahead = usage.step_bytes + usage.graph_bytes + HEADROOM_BYTES
    budget = int(total_bytes * utilization * share) - CONTEXT_BYTES - usage.weights_bytes - ahead
    return min(budget, free_bytes - ahead)


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """What torch allocates at most while `run` runs, beyond what it has allocated before."""
    if device.type != "cuda":
        run()
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
