"""Chunks of prompts in a step that is launched kernel by kernel: where they lie, and which of their tokens are wanted
for more than their KV."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from ...kernels.vendor_attention import Run
from ..plan import Row
from ..pooling import pooled_positions
from .attention import Chunks
from .inputs import to_device
from .runtime import Runtime


def chunk_runs(rows: Sequence[Row]) -> list[Run]:
    """Of these rows, of one at least, one after the other."""
    lengths = [len(row.token_ids) for row in rows]
    firsts = accumulate(lengths[:-1], initial=0)
    return [Run(first, length, row.start) for first, length, row in zip(firsts, lengths, rows, strict=True)]


def describe(runtime: Runtime, runs: Sequence[Run]) -> Chunks:
    """For attention; of one run at least."""
    starts = [*(run.first_token for run in runs), runs[-1].first_token + runs[-1].num_tokens]
    return Chunks(
        to_device(runtime, np.array(starts, np.int32)),
        max(run.num_tokens for run in runs),
        max(run.start + run.num_tokens for run in runs),
        runs,
    )


def wanted_tokens(num_before: int, rows: Sequence[Row], runs: Sequence[Run]) -> tuple[list[int], int]:
    """Of a step in which so many tokens come before: these, then the last one of each row that needs its logits, and
    then what `PromptFacts.launch` takes; and of how many the logits are needed, from the first."""
    needing = [run for row, run in zip(rows, runs, strict=True) if needs_logits(row)]
    last = [run.first_token + run.num_tokens - 1 for run in needing]
    scored = _tokens(runs, [range(row.num_scored) for row in rows])
    pooled = _tokens(runs, [pooled_positions(row) for row in rows])
    after = [num_before + token for token in (*last, *scored, *pooled)]
    return [*range(num_before), *after], num_before + len(last)


def needs_logits(row: Row) -> bool:
    """Of its last position."""
    return bool(row.draws) or row.keep_logits


def _tokens(runs: Sequence[Run], places: Sequence[range]) -> list[int]:
    """Given, of each run, places in it."""
    return [run.first_token + place for run, own in zip(runs, places, strict=True) for place in own]
