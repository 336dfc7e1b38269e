"""RMS norms between the layers of Llama-3.1-8B and SmolLM2-135M, against the time to read and write each row once."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from ...kernels.add_rms_norm import NormConfig, add_rms_norm, ref_add_rms_norm, rms_norm
from ..kernel_case import KernelCase, Run

OP = "add_rms_norm"
EPS = 1e-5
ROTATED_BYTES = 200_000_000
MAX_SETS = 32
"""Few rows are in the L2 cache when a model's step gets to them, too."""

FEW_ROWS_WARPS = (4, 8, 16, 32)
MANY_ROWS_WARPS = (2, 4, 8, 16)


def cases(device: torch.device) -> Iterator[KernelCase]:
    for num_rows in (1, 64, 256, 8192):
        yield _add_case(device, num_rows, 4096, FEW_ROWS_WARPS if num_rows <= 256 else MANY_ROWS_WARPS)
    yield _add_case(device, 1, 576, (1, 2, 4))
    yield _plain_case(device, 8192, 4096)


class Rows:
    """One set of memory."""

    def __init__(self, device: torch.device, num_rows: int, size: int) -> None:
        self.x, self.residual = torch.randn(2, num_rows, size, dtype=torch.bfloat16, device=device)
        self.weight = torch.rand(size, dtype=torch.bfloat16, device=device)
        self.out = torch.empty_like(self.x)

    def add(self, *, pdl: bool = False, config: NormConfig | None = None) -> object:
        return add_rms_norm(self.x, self.residual, self.weight, EPS, self.out, pdl=pdl, config=config)

    def norm(self) -> object:
        return rms_norm(self.x, self.weight, EPS, self.out)

    def torch_norm(self) -> object:
        return F.rms_norm(self.x, self.x.shape[1:], self.weight, EPS)


def _sets(device: torch.device, num_rows: int, size: int, num_bytes: int) -> list[Rows]:
    return [Rows(device, num_rows, size) for _ in range(min(ROTATED_BYTES // num_bytes + 2, MAX_SETS))]


def _add_case(device: torch.device, num_rows: int, size: int, warps: Sequence[int]) -> KernelCase:
    num_bytes = num_rows * size * 2 * 4 + size * 2
    sets = _sets(device, num_rows, size, num_bytes)
    peers: dict[str, Sequence[Run]] = {"pdl": [partial(rows.add, pdl=True) for rows in sets]}
    for num_warps in warps:
        peers[f"{num_warps} warps"] = [partial(rows.add, config=NormConfig(num_warps)) for rows in sets]

    def check() -> tuple[torch.Tensor, torch.Tensor]:
        rows = Rows(device, num_rows, size)
        exact = ref_add_rms_norm(rows.x.double(), rows.residual.double(), rows.weight.double(), EPS)
        rows.add()
        return rows.out, exact

    runs = [rows.add for rows in sets]
    return KernelCase(OP, f"add + norm, [{num_rows}, {size}], bf16", runs, num_bytes, peers=peers, check=check)


def _plain_case(device: torch.device, num_rows: int, size: int) -> KernelCase:
    num_bytes = num_rows * size * 2 * 2 + size * 2
    sets = _sets(device, num_rows, size, num_bytes)
    peers: dict[str, Sequence[Run]] = {"torch's rms_norm": [rows.torch_norm for rows in sets]}
    return KernelCase(OP, f"norm, [{num_rows}, {size}], bf16", [rows.norm for rows in sets], num_bytes, peers=peers)
