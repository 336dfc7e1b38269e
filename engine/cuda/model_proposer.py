"""Guesses by a model on the device: see engine/draft_model.py."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.begin_step import begin_step
from ...kernels.vendor_attention import Run
from ..draft_progress import DraftProgress
from ..guesses import Guesses
from ..models.llama import Llama
from ..plan import Row
from .attention import AttentionState, Chunks, StepAttention
from .inputs import FIELDS, Inputs, TokenInputs, to_device
from .proposer import DeviceProposer
from .runtime import Runtime
from .sampler import DeviceSampler
from .sequences import Sequences
from .step_sizes import StepSize

CATCH_UP_TOKENS = 4096
"""Of all sequences together, in one step."""


class ModelProposer(DeviceProposer):
    def __init__(
        self,
        model: Llama,
        attention: AttentionState,
        runtime: Runtime,
        sequences: Sequences,
        sampler: DeviceSampler,
        max_rows: int,
        progress: DraftProgress | None,
    ) -> None:
        """`attention` is over the pool of `model`. `progress`: of a pool of its own, in which the token before a
        sequence's last may be missing; None where the pool is the target's."""
        super().__init__(sampler, max_rows, runtime.device)
        self._model, self._attention, self._runtime = model, attention, runtime
        self._sequences, self._progress = sequences, progress
        self._inputs = Inputs(runtime, CATCH_UP_TOKENS)
        self._previous = torch.zeros(max_rows, dtype=torch.int32, device=runtime.device)
        self._host_previous = [runtime.pinned(max_rows) for _ in range(2)]

    # Before a step.

    def ready(self, rows: Sequence[Row]) -> set[int]:
        """Sequences that it can guess for now: it computes what it lacks of them, as far as there is time."""
        progress = self._progress
        if progress is None:
            return {row.seq_id for row in rows}
        missing: list[Row] = []
        for row in rows:
            lacking = progress.missing(row)
            if lacking is not None and sum(len(one.token_ids) for one in (*missing, lacking)) <= CATCH_UP_TOKENS:
                missing.append(lacking)
        if missing:
            self._compute(missing)
            for row in missing:
                progress.computed(row)
        return {row.seq_id for row in rows if progress.is_ready(row)}

    def upload(self, parity: int, rows: Sequence[Row]) -> None:
        """The tokens before the last ones."""
        if self._progress is not None:
            host = self._host_previous[parity]
            host[: len(rows)] = torch.tensor([row.history[-2] if row.history else 0 for row in rows])
            self._previous[: len(rows)].copy_(host[: len(rows)], non_blocking=True)

    # Within a step, captured or not.

    def logits(self, inputs: TokenInputs, here: slice, rows: Tensor, *, is_first: bool) -> Tensor:
        """See DeviceProposer."""
        positions, wanted = inputs.positions[here], None
        brings = (inputs.new_indices[here], inputs.new_blocks[here])
        x = begin_step(
            inputs.token_ids[here],
            rows,
            *brings,
            self._sampler.table.last_token,
            self._sequences.block_tables,
            self._model.embedding,
        )
        num_turns = 1
        if is_first and self._progress is not None:
            num_rows, num_turns = len(rows), 2
            x = torch.cat((F.embedding(self._previous[:num_rows], self._model.embedding), x))
            positions = torch.cat((positions - 1, positions)).clamp(min=0)
            rows = torch.cat((rows, rows))
            wanted = torch.arange(num_rows, 2 * num_rows, device=rows.device)
        attention = StepAttention.of(self._attention, rows, positions, len(rows), None, num_turns)
        attention.begin()
        return self._model.forward_embedded(x, wanted, attention)

    # After a step.

    def verified(self, rows: Sequence[Row], guesses: Sequence[Guesses]) -> None:
        """These were the guesses of these rows."""
        if self._progress is not None:
            for row, guessed in zip(rows, guesses, strict=True):
                self._progress.guessed(row, [row.token_ids[0], *guessed.token_ids][: row.num_drafts])

    def retire(self, seq_id: int) -> None:
        if self._progress is not None:
            self._progress.retire(seq_id)

    def _compute(self, rows: Sequence[Row]) -> None:
        """The KV of these, launched kernel by kernel and waited for: it is rare."""
        lengths = [len(row.token_ids) for row in rows]
        ends = list(accumulate(lengths))
        table = np.zeros((len(FIELDS), ends[-1]), np.int32)
        for index, (row, end) in enumerate(zip(rows, ends, strict=True)):
            place = slice(end - len(row.token_ids), end)
            table[0, place] = row.token_ids
            table[1, place] = self._sequences.chunk_row(0, index, row)
            table[2, place] = np.arange(row.start, row.start + len(row.token_ids))
        size = StepSize(0, ends[-1])
        self._inputs.upload(0, table, size, size)
        inputs = self._inputs.of(ends[-1])
        runs = [
            Run(end - len(row.token_ids), len(row.token_ids), row.start) for row, end in zip(rows, ends, strict=True)
        ]
        starts = to_device(self._runtime, np.array([0, *ends], np.int32))
        longest = max(run.start + run.num_tokens for run in runs)
        attention = StepAttention.of(
            self._attention, inputs.rows, inputs.positions, 0, Chunks(starts, max(lengths), longest, runs)
        )
        attention.begin()
        nothing = torch.zeros(0, dtype=torch.int64, device=self._runtime.device)
        self._model.hidden(F.embedding(inputs.token_ids, self._model.embedding), nothing, attention)
        self._runtime.mark()()
