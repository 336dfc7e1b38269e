"""Log-probabilities of a decode step's tokens, beside torch's operators."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ...kernels.top_logprobs import (
    LogprobWorkspace,
    TopLogprobs,
    launch_top_logprobs,
    ref_top_logprobs,
    top_logprobs,
)
from ..kernel_case import KernelCase, Run

ROTATED_BYTES = 200_000_000
MAX_RUNS = 128
SCANS = ((1024, 2), (1024, 4), (4096, 8))


def cases(device: torch.device) -> Iterator[KernelCase]:
    yield _case(device, 256, 128_256, 0)
    yield _case(device, 256, 128_256, 20)
    yield _case(device, 1, 128_256, 5)
    yield _case(device, 1, 49_152, 20)


def _case(device: torch.device, batch: int, vocab_size: int, num_top: int) -> KernelCase:
    num_batches = min(ROTATED_BYTES // (4 * batch * vocab_size) + 2, MAX_RUNS)
    batches = [torch.randn(batch, vocab_size, device=device) * 3 for _ in range(num_batches)]
    tokens = torch.randint(0, vocab_size, (batch,), device=device)
    out = TopLogprobs.empty(batch, num_top, device)

    def runs(tile: int, num_warps: int) -> list[Run]:
        workspace = LogprobWorkspace(batch, vocab_size, num_top, device, tile=tile)
        scan = {"TILE": tile, "num_warps": num_warps}
        return [
            partial(launch_top_logprobs, logits, tokens, num_top, workspace=workspace, out=out, scan=scan)
            for logits in batches
        ]

    peers: dict[str, Sequence[Run]] = {f"TILE {tile}, {warps} warps": runs(tile, warps) for tile, warps in SCANS}
    peers["torch: log_softmax, topk"] = [partial(_torch, logits, tokens, num_top) for logits in batches]
    workspace = LogprobWorkspace(batch, vocab_size, num_top, device)
    return KernelCase(
        "top_logprobs",
        f"batch {batch}, vocabulary {vocab_size}, top {num_top}",
        [partial(top_logprobs, logits, tokens, num_top, workspace=workspace, out=out) for logits in batches],
        num_bytes=4 * batch * vocab_size,
        peers=peers,
        check=lambda: _check(batches[0], tokens, num_top),
    )


def _torch(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = logits.log_softmax(-1)
    of_tokens = logprobs.gather(1, tokens[:, None])
    ranks = (logprobs > of_tokens).sum(-1)
    return of_tokens, ranks, logprobs.topk(max(num_top, 1)).values


def _check(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """Of a few rows, for the reference sorts."""
    ours, expected = (f(logits[:8], tokens[:8], num_top) for f in (top_logprobs, ref_top_logprobs))
    return _joined(ours), _joined(expected)


def _joined(found: TopLogprobs) -> Tensor:
    return torch.cat((found.logprobs[:, None], found.top_logprobs, found.ranks[:, None]), dim=1)
