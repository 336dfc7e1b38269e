"""The gates of Llama-3.1-8B and SmolLM2-135M, against the time to read and write each number once."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from ...kernels.silu_mul import SiluConfig, ref_silu_mul, silu_mul
from ..kernel_case import KernelCase, Run

ROTATED_BYTES = 200_000_000
MAX_SETS = 32
"""Few rows are in the L2 cache when a model's step gets to them, too."""

CONFIGS = {
    1: ((256, 1), (512, 2), (1024, 4), (2048, 8)),
    64: ((512, 2), (1024, 4), (2048, 8), (2048, 4)),
    256: ((512, 2), (1024, 4), (2048, 8), (2048, 4), (4096, 8)),
    8192: ((1024, 4), (2048, 8), (2048, 4), (4096, 8), (4096, 4), (8192, 16)),
}


def cases(device: torch.device) -> Iterator[KernelCase]:
    for num_rows, configs in CONFIGS.items():
        yield _case(device, num_rows, 14336, configs)
    yield _case(device, 1, 1536, CONFIGS[1])


def _case(device: torch.device, num_rows: int, size: int, configs: Sequence[tuple[int, int]]) -> KernelCase:
    num_bytes = num_rows * size * 3 * 2
    num_sets = min(ROTATED_BYTES // num_bytes + 2, MAX_SETS)
    inputs = [torch.randn(num_rows, 2 * size, dtype=torch.bfloat16, device=device) for _ in range(num_sets)]
    outputs = [torch.empty(num_rows, size, dtype=torch.bfloat16, device=device) for _ in range(num_sets)]

    def runs(*, pdl: bool = False, config: SiluConfig | None = None) -> list[Run]:
        return [partial(silu_mul, x, out, pdl=pdl, config=config) for x, out in zip(inputs, outputs, strict=True)]

    peers: dict[str, Sequence[Run]] = {"pdl": runs(pdl=True)}
    for block, num_warps in configs:
        peers[f"block {block}, {num_warps} warps"] = runs(config=SiluConfig(block, num_warps))
    return KernelCase(
        "silu_mul",
        f"[{num_rows}, 2 x {size}], bf16",
        runs(),
        num_bytes,
        peers=peers,
        check=lambda: (silu_mul(inputs[0]), ref_silu_mul(inputs[0].double())),
    )
