"""A decode step's look at the tokens so far: DRY, repetition over a range, n-grams, bad words; Llama-3.1's vocabulary.

Tokens fall off by Zipf's law, so the last one stands at many places; the pathological context is one token throughout,
where every place is a match. Steps are repeated at one position, which reads and writes what the first did."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels.history_step import apply_history, launch_history, ref_apply_history
from ...kernels.history_table import HistoryParams, HistoryTable
from ..kernel_case import KernelCase, Run

VOCAB_SIZE = 128_256
ROTATED_BYTES = 200_000_000
MAX_RUNS = 16
CHECKED_ROWS = 4
LEAST = -1e30

NEUTRAL = HistoryParams()
DRY = HistoryParams(dry_multiplier=0.8)
RANGE = HistoryParams(repetition_penalty=1.1, repetition_penalty_range=1024, repetition_penalty_slope=0.7)
NGRAM = HistoryParams(no_repeat_ngram_size=3)
WORDS = HistoryParams(bad_words=tuple((i, i + 1, i + 2) for i in range(0, 600, 3)))
ALL = replace(
    RANGE, dry_multiplier=DRY.dry_multiplier, no_repeat_ngram_size=NGRAM.no_repeat_ngram_size, bad_words=WORDS.bad_words
)

CONFIGS = ((1024, 4), (2048, 8), (2048, 16), (4096, 8), (4096, 16), (4096, 32))


def cases(device: torch.device) -> Iterator[KernelCase]:
    for name, params, batch, length in (
        ("nothing asked for", NEUTRAL, 256, 1024),
        ("DRY", DRY, 256, 1024),
        ("everything", ALL, 256, 1024),
        ("DRY", DRY, 64, 32_768),
        ("n-gram of 3", NGRAM, 64, 32_768),
        ("repetition, range 1024 with slope", RANGE, 64, 32_768),
        ("everything", ALL, 64, 32_768),
    ):
        yield _case(device, f"{name}, Zipf", params, _zipf(batch, length))
    for batch, length in ((1, 1024), (64, 32_768)):
        yield _case(device, "DRY, one token throughout", DRY, np.full((batch, length), 5))


def _zipf(batch: int, length: int) -> np.ndarray:
    generator = np.random.default_rng(length)
    return np.minimum(generator.zipf(1.2, (batch, length)), VOCAB_SIZE) - 1


def _case(device: torch.device, name: str, params: HistoryParams, tokens: np.ndarray) -> KernelCase:
    batch, length = tokens.shape
    num_tables = 1 if params.is_neutral else min(ROTATED_BYTES // (20 * tokens.size) + 2, MAX_RUNS)
    tables = [_table(device, params, tokens) for _ in range(num_tables)]
    logits = torch.randn(batch, VOCAB_SIZE, device=device)
    reads_tokens = params.dry_multiplier or params.no_repeat_ngram_size
    peers: dict[str, Sequence[Run]] = {
        f"BLOCK {block}, {num_warps} warps": _runs(logits, tables, {"BLOCK": block, "num_warps": num_warps})
        for block, num_warps in CONFIGS
        if params in (DRY, ALL)
    }
    return KernelCase(
        "history_step",
        f"batch {batch}, context {length}: {name}",
        _runs(logits, tables, None),
        num_bytes=4 * tokens.size if reads_tokens else 0,
        peers=peers,
        check=partial(_check, tables[0]),
        tolerance=1e-5,
    )


def _table(device: torch.device, params: HistoryParams, tokens: np.ndarray) -> HistoryTable:
    table = HistoryTable(len(tokens), VOCAB_SIZE, device)
    for slot, line in enumerate(tokens.tolist()):
        table.set(slot, params, line, (), len(line) + 64)
    return table


def _runs(logits: Tensor, tables: list[HistoryTable], config: dict[str, int] | None) -> list[Run]:
    slots = torch.arange(len(logits), dtype=torch.int32, device=logits.device)
    arguments = logits, slots, torch.zeros_like(slots), torch.zeros_like(slots)
    if config is None:
        return [partial(apply_history, *arguments, table) for table in tables]
    return [partial(launch_history, *arguments, table, config) for table in tables]


def _check(table: HistoryTable) -> tuple[Tensor, Tensor]:
    """A few rows; bans as very low numbers."""
    n = min(CHECKED_ROWS, len(table.rules))
    slots = torch.arange(n, dtype=torch.int32, device=table.device)
    logits = torch.randn(n, VOCAB_SIZE, device=table.device)
    last = torch.zeros(len(table.rules), dtype=torch.int32, device=table.device)
    expected = ref_apply_history(logits.clone(), slots, torch.zeros_like(slots), last, table)
    apply_history(logits, slots, torch.zeros_like(slots), last, table)
    return logits.clamp(min=LEAST), expected.clamp(min=LEAST)
