"""A decode step's draws over the vocabularies of Llama-3.1-8B and SmolLM2-135M, beside torch's operators.

Logits fall off as language models' do, by a power law of the rank: 0.95 of the probability is some two hundred tokens.
The flat ones have ten thousands there, top-p's slow path: a draw in twenty is outside the nucleus, which is then
sought. Of masked ones a grammar has left fewer tokens than top-k wants."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...kernels.sampling_table import SamplingTable, SlotParams
from ...kernels.sampling_tail import FINISH, SCAN, TailWorkspace, launch_tail, ref_sample_tail, sample_tail
from ..kernel_case import KernelCase, Run

LLAMA, SMOL = 128_256, 49_152
ROTATED_BYTES = 200_000_000
MAX_RUNS = 128
CHECKED_ROWS = 8
NUM_UNMASKED = 20

PLAIN = SlotParams(key=(3, 4))
GREEDY = SlotParams(temperature=0.0)
WARM = replace(PLAIN, temperature=0.8)
TRUNCATED = replace(PLAIN, top_k=50, top_p=0.95, min_p=0.05)
EVERYTHING = replace(TRUNCATED, temperature=0.8, repetition=1.1, frequency=0.3, presence=0.2)
NUCLEUS = replace(PLAIN, top_p=0.95)
HALF = replace(PLAIN, top_p=0.5)
MIN_P = replace(PLAIN, min_p=0.05)

SCANS = ((1024, 2), (2048, 4), (4096, 4), (8192, 8))
FINISHES: tuple[dict[str, int], ...] = (
    {"TILE": 2048, "CAPACITY": 1024, "num_warps": 8},
    {"TILE": 4096, "CAPACITY": 1024, "num_warps": 8},
    {"TILE": 2048, "CAPACITY": 1024, "num_warps": 16},
)


def cases(device: torch.device) -> Iterator[KernelCase]:
    for batch, vocab_size in ((256, LLAMA), (1, LLAMA), (1, SMOL)):
        is_large = batch > 1
        tail = _Tail(device, batch, vocab_size)
        peers = tail.scan_peers() | ({"torch: softmax / exponential, argmax": tail.torch_draws()} if is_large else {})
        yield tail.case("default", PLAIN, 1, peers)
        finishes = tail.finish_peers() if vocab_size == LLAMA else {}  # they compile for seconds
        yield tail.case("top-k 50, top-p 0.95, min-p 0.05, penalties", EVERYTHING, 2, finishes)
        peers = finishes | ({"torch: sort, cumsum": tail.torch_nucleus()} if is_large else {})
        yield tail.case("top-p 0.95", NUCLEUS, 1, peers)
        yield tail.case("top-p 0.5", HALF, 1, {})
        yield tail.case("top-p 0.95, flat logits", NUCLEUS, 1, finishes, make=flat)
        if is_large:
            yield tail.case("top-k 50, top-p 0.95, min-p 0.05", TRUNCATED, 1, {})
            yield tail.case(f"top-k 50, top-p 0.95, min-p 0.05, {NUM_UNMASKED} unmasked", TRUNCATED, 1, {}, make=masked)
            yield tail.case("min-p 0.05", MIN_P, 1, {})
            yield tail.case("temperature 0.8", WARM, 1, {})
            yield tail.case("greedy", GREEDY, 1, {"torch: argmax": tail.torch_greedy()})
        del tail, peers, finishes


def power_law(num_rows: int, vocab_size: int, device: torch.device) -> Tensor:
    """fp32 [num_rows, vocab_size]: −1.5 ln(rank), ranks in a random order, with a little noise."""
    ranks = torch.rand(num_rows, vocab_size, device=device).argsort(-1) + 1
    return ranks.float().log_().mul_(-1.5).add_(torch.randn(num_rows, vocab_size, device=device), alpha=0.2).add_(15.0)


def flat(num_rows: int, vocab_size: int, device: torch.device) -> Tensor:
    """fp32 [num_rows, vocab_size]"""
    return torch.randn(num_rows, vocab_size, device=device)


def masked(num_rows: int, vocab_size: int, device: torch.device) -> Tensor:
    """As `power_law`, but NUM_UNMASKED anywhere in a row are all that is not −inf."""
    logits = power_law(num_rows, vocab_size, device)
    ids = torch.rand(num_rows, vocab_size, device=device).topk(NUM_UNMASKED).indices
    return torch.full_like(logits, -torch.inf).scatter_(1, ids, logits.gather(1, ids))


class _Tail:
    """Batches of one shape, and their table."""

    def __init__(self, device: torch.device, batch: int, vocab_size: int) -> None:
        torch.manual_seed(0)
        num_batches = min(ROTATED_BYTES // (4 * batch * vocab_size) + 2, MAX_RUNS)
        self.shape = (batch, vocab_size)
        self.batches = [power_law(batch, vocab_size, device) for _ in range(num_batches)]
        self.table = SamplingTable(batch, vocab_size, device)
        self.slots = torch.arange(batch, dtype=torch.int32, device=device)
        self.positions = self.slots + 100
        self.out = torch.empty(batch, dtype=torch.int64, device=device)
        self.device = device
        self.workspace = TailWorkspace(batch, vocab_size, device)

    def case(
        self,
        name: str,
        params: SlotParams,
        num_passes: int,
        peers: dict[str, Sequence[Run]],
        *,
        make: Callable[[int, int, torch.device], Tensor] = power_law,
    ) -> KernelCase:
        """The table holds `params` from now on."""
        batch, vocab_size = self.shape
        seen = range(0, vocab_size, vocab_size // 500)
        for slot in range(batch):
            self.table.set(slot, params, seen, seen[::3])
        for logits in self.batches:
            logits.copy_(make(batch, vocab_size, self.device))
        return KernelCase(
            "sampling_tail",
            f"batch {batch}, vocabulary {vocab_size}: {name}",
            [
                partial(sample_tail, *self._inputs(logits), workspace=self.workspace, out=self.out)
                for logits in self.batches
            ],
            num_bytes=4 * batch * vocab_size * num_passes,
            peers=peers,
            check=self._check,
        )

    def scan_peers(self) -> dict[str, Sequence[Run]]:
        return {
            f"scan TILE {tile}, {num_warps} warps": self._launches({"TILE": tile, "num_warps": num_warps}, FINISH)
            for tile, num_warps in SCANS
        }

    def finish_peers(self) -> dict[str, Sequence[Run]]:
        return {
            "finish " + ", ".join(f"{value} {name}" for name, value in finish.items()): self._launches(SCAN, finish)
            for finish in FINISHES
        }

    def torch_draws(self) -> list[Run]:
        noise = torch.empty_like(self.batches[0])
        return [partial(_torch_draw, logits, noise) for logits in self.batches]

    def torch_nucleus(self) -> list[Run]:
        noise = torch.empty_like(self.batches[0])
        return [partial(_torch_nucleus, logits, noise) for logits in self.batches]

    def torch_greedy(self) -> list[Run]:
        return [partial(logits.argmax, dim=-1) for logits in self.batches]

    def _launches(self, scan: dict[str, int], finish: dict[str, int]) -> list[Run]:
        return [
            partial(
                launch_tail, *self._inputs(logits), workspace=self.workspace, out=self.out, scan=scan, finish=finish
            )
            for logits in self.batches
        ]

    def _inputs(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, SamplingTable]:
        return logits, self.slots, self.positions, self.table

    def _check(self) -> tuple[Tensor, Tensor]:
        """A few rows' tokens; penalties read the same counts in both."""
        logits, slots, positions, table = self._inputs(self.batches[0])
        n = min(CHECKED_ROWS, self.shape[0])
        counts = table.counts[:n].clone()
        expected = torch.empty(n, dtype=torch.int64, device=self.device)
        ref_sample_tail(logits[:n], slots[:n], positions[:n], table, out=expected)
        table.counts[:n] = counts
        sample_tail(logits, slots, positions, table, workspace=self.workspace, out=self.out)
        return self.out[:n].float(), expected.float()


def _torch_draw(logits: Tensor, noise: Tensor) -> Tensor:
    return logits.softmax(-1).div_(noise.exponential_()).argmax(-1)


def _torch_nucleus(logits: Tensor, noise: Tensor) -> Tensor:
    ordered, ids = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    probabilities.masked_fill_(probabilities.cumsum(-1) - probabilities >= 0.95, 0.0)
    return ids.gather(1, probabilities.div_(noise.exponential_()).argmax(-1, keepdim=True))
