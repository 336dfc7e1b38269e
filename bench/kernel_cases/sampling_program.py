"""Samplers that the fused tail has not built in, over Llama-3.1-8B's vocabulary: alone, all at once, and the price that
rows without any pay for the launch. A decode step of that model at batch 256 takes about 20 ms."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...kernels.sampling_params import SlotParams
from ...kernels.sampling_table import SamplingTable
from ...kernels.sampling_tail import PROGRAM, TailWorkspace, launch_programs, ref_sample_tail
from ..kernel_case import KernelCase, Run
from .sampling_tail import power_law

VOCAB_SIZE = 128_256
CHECKED_ROWS = 4

PLAIN = SlotParams(key=(3, 4))
CASES = {
    "defaults (returns at once)": PLAIN,
    "min-p 0.05, XTC": replace(PLAIN, min_p=0.05, xtc_probability=0.5),
    "dynamic temperature": replace(PLAIN, dynatemp_min=0.5, dynatemp_max=1.5),
    "top-nsigma 1": replace(PLAIN, nsigma=1.0),
    "typical 0.9": replace(PLAIN, typical_p=0.9),
    "Mirostat 1": replace(PLAIN, mirostat_mode=1),
    "Mirostat 2": replace(PLAIN, mirostat_mode=2),
    "tail-free 0.95, whole row sorted": replace(PLAIN, tfs=0.95),
    "everything": replace(
        PLAIN, temperature=1.1, nsigma=3.0, top_k=200, top_p=0.98, top_a=0.001, min_p=0.002, tfs=0.99,
        eta_cutoff=3e-4, epsilon_cutoff=3e-4, typical_p=0.97, smoothing_factor=0.05, xtc_probability=0.5, skew=0.2,
        repetition=1.1, frequency=0.2, presence=0.1,
    ),
}  # fmt: skip
PEERS = (
    {"TILE": 2048, "CAPACITY": 1024, "num_warps": 8},
    {"TILE": 4096, "CAPACITY": 2048, "num_warps": 16},
)


def cases(device: torch.device) -> Iterator[KernelCase]:
    for batch in (256, 1):
        rows = _Rows(device, batch)
        for name, params in CASES.items():
            yield rows.case(name, params, with_peers=batch > 1 and name == "everything")
        del rows


class _Rows:
    """Logits, which programs overwrite: each run takes a fresh copy, whose time is a peer of its own."""

    def __init__(self, device: torch.device, batch: int) -> None:
        torch.manual_seed(0)
        self.device, self.batch = device, batch
        self.logits = power_law(batch, VOCAB_SIZE, device)
        self.copy = torch.empty_like(self.logits)
        self.slots = torch.arange(batch, dtype=torch.int32, device=device)
        self.positions = self.slots + 100
        self.out = torch.empty(batch, dtype=torch.int64, device=device)
        self.table = SamplingTable(batch, VOCAB_SIZE, device)
        self.workspace = TailWorkspace(batch, VOCAB_SIZE, device)

    def case(self, name: str, params: SlotParams, *, with_peers: bool) -> KernelCase:
        """The table holds `params` from now on."""
        seen = range(0, VOCAB_SIZE, VOCAB_SIZE // 500)
        for slot in range(self.batch):
            self.table.set(slot, params, seen, seen[::3])
        peers: dict[str, Sequence[Run]] = {"the copy of logits alone": [partial(self.copy.copy_, self.logits)]}
        if with_peers:
            peers |= {
                ", ".join(f"{value} {key}" for key, value in config.items()): [partial(self._run, config)]
                for config in PEERS
            }
        return KernelCase(
            "sampling_program",
            f"batch {self.batch}, vocabulary {VOCAB_SIZE}: {name}, with a copy of the logits",
            [partial(self._run, PROGRAM)],
            num_bytes=4 * self.batch * VOCAB_SIZE * 3,
            peers=peers,
            check=self._check if params is not PLAIN else None,
        )

    def _run(self, config: dict[str, int]) -> Tensor:
        self.copy.copy_(self.logits)
        arguments = (self.copy, self.slots, self.positions, self.table)
        return launch_programs(*arguments, workspace=self.workspace, out=self.out, config=config)

    def _check(self) -> tuple[Tensor, Tensor]:
        """A few rows' tokens; both begin with the same counts and states."""
        n = CHECKED_ROWS if self.batch > CHECKED_ROWS else self.batch
        kept = self.table.counts[:n].clone(), self.table.states[:n].clone()
        expected = torch.empty(n, dtype=torch.int64, device=self.device)
        ref_sample_tail(self.logits[:n].clone(), self.slots[:n], self.positions[:n], self.table, out=expected)
        self.table.counts[:n], self.table.states[:n] = kept
        self._run(PROGRAM)
        return self.out[:n].float(), expected.float()
