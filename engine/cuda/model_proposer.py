"""Guesses by a model on the device: see engine/draft_model.py."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.begin_step import begin_step
from ..draft_progress import DraftProgress
from ..guesses import Guesses
from ..models.llama import Llama
from ..plan import Row
from .attention import AttentionState, StepAttention
from .chunk_runs import chunk_runs, describe
from .inputs import FIELDS, Inputs, TokenInputs
from .pool import CudaKvPool
from .proposer import DeviceProposer
from .runtime import Runtime
from .sampler import DeviceSampler
from .sequences import Sequences
from .step_sizes import StepSize

CATCH_UP_TOKENS = 4096
"""Of all sequences together, in one step."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A model that guesses."""

    model: Llama
    pool: CudaKvPool | None
    """None: it is made of the target's first layers, and uses its pool. Else one of as many blocks of the same size."""


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

    @classmethod
    def of(
        cls,
        draft: Draft,
        target: AttentionState,
        runtime: Runtime,
        sequences: Sequences,
        sampler: DeviceSampler,
        max_rows: int,
    ) -> "ModelProposer":
        """`target`: the attention of the model that verifies its guesses."""
        model, pool, tables = draft.model, draft.pool, sequences.block_tables
        if pool is None:
            return cls(model, target, runtime, sequences, sampler, max_rows, None)
        table = model.rope.table(tables.shape[1] * pool.block_size).to(runtime.device)
        attention = AttentionState(model.config, pool, table, tables, max_rows, 2, pdl=target.pdl)
        progress = DraftProgress(pool.num_blocks, pool.block_size, num_redone=1)
        return cls(model, attention, runtime, sequences, sampler, max_rows, progress)

    # Before a step.

    def ready(self, rows: Sequence[Row]) -> set[int]:
        """Sequences that it can guess for now: it computes what it lacks of them, as far as there is time."""
        progress = self._progress
        if progress is None:
            return {row.seq_id for row in rows}
        room = CATCH_UP_TOKENS
        while missing := _missing(progress, rows, room):
            self._compute(missing)
            for row in missing:
                progress.computed(row)
                room -= len(row.token_ids)
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
        runs = chunk_runs(rows)
        num_tokens = sum(run.num_tokens for run in runs)
        table = np.zeros((len(FIELDS), num_tokens), np.int32)
        for index, (row, run) in enumerate(zip(rows, runs, strict=True)):
            place = slice(run.first_token, run.first_token + run.num_tokens)
            table[0, place] = row.token_ids
            table[1, place] = self._sequences.chunk_row(0, index, row)
            table[2, place] = np.arange(row.start, row.start + run.num_tokens)
        size = StepSize(0, num_tokens)
        self._inputs.upload(0, table, size, size)
        inputs, chunks = self._inputs.of(num_tokens), describe(self._runtime, runs)
        attention = StepAttention.of(self._attention, inputs.rows, inputs.positions, 0, chunks)
        attention.begin()
        nothing = torch.zeros(0, dtype=torch.int64, device=self._runtime.device)
        self._model.hidden(F.embedding(inputs.token_ids, self._model.embedding), nothing, attention)
        self._runtime.mark()()


def _missing(progress: DraftProgress, rows: Sequence[Row], room: int) -> list[Row]:
    """What rows lack, as many tokens as there is room for."""
    missing: list[Row] = []
    for row in rows:
        lacking = progress.missing(row)
        if lacking is not None and len(lacking.token_ids) <= room:
            room -= len(lacking.token_ids)
            missing.append(lacking)
    return missing
