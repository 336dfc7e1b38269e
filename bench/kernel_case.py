"""A kernel's benchmark of one shape: how to run it, what it must move and compute, and beside what it stands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class KernelCase:
    op: str
    """The kernel's module in `isthmus.kernels`."""
    shape: str
    """For people: `batch 64, context 1088, bf16`."""
    runs: Sequence[Run]
    """The same work on different memory, run in turn, so that caches hold as little as in a model's step. Each
    allocates nothing and waits for nothing: it is captured in a CUDA graph."""
    num_bytes: int = 0
    """That one run cannot help reading and writing."""
    num_flops: int = 0
    """Of the matrix units in one run."""
    peers: dict[str, Sequence[Run]] = field(default_factory=dict)
    """Other ways to the same result, by name: vendor libraries, other configurations."""
    check: Callable[[], tuple[Tensor, Tensor]] | None = None
    """(what the kernel gave, a reference in higher precision) on this very case."""
    tolerance: float = 1e-2
    """Of ‖out − ref‖ / ‖ref‖."""
