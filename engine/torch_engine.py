"""The engine of plan.py on torch: a model, its KV pool, and a sampler.

A step flattens the tokens of all its rows through the linear layers and attends row by row. On a CPU nothing is gained
by returning early, so `launch` computes the step and the handle holds its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .attention import PagedAttention
from .kv_pool import KvPool
from .models.llama import Llama
from .plan import IN_FLIGHT, Draw, Plan, Result, Row, SequenceSeed


class Sampler(Protocol):
    """Draws tokens; keeps what that needs for each admitted sequence."""

    def admit(self, seed: SequenceSeed) -> None: ...

    def retire(self, seq_id: int) -> None: ...

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        """fp32 [N, vocab_size], a row for each draw -> int64 [N]. The logits may be overwritten."""


@dataclass(frozen=True, slots=True)
class Done:
    """The handle of a step that was computed when it was launched."""

    plan: Plan
    outcome: Result

    def result(self) -> Result:
        return self.outcome


class TorchEngine:
    overlaps = False

    def __init__(self, model: Llama, pool: KvPool, sampler: Sampler) -> None:
        self._model, self._pool, self._sampler = model, pool, sampler
        self._last: dict[int, int] = {}
        self.num_blocks, self.block_size = pool.num_blocks, pool.block_size
        self.bytes_per_block = pool.bytes_per_block
        self.vocab_size = model.config.vocab_size

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Done:
        self._pool.copy(plan.copies)
        rows = [row for row in plan.rows if row.draws or row.keep_logits]
        computed = self._compute(plan.rows)
        kept = {row.seq_id: computed[i].clone() for i, row in enumerate(rows) if row.keep_logits}
        draws = plan.draws
        token_ids: list[int] = []
        if draws:
            token_ids = self._sampler.sample(self._logits_of_draws(computed, rows, plan), draws).tolist()
        self._last = {draw.seq_id: token for draw, token in zip(draws, token_ids, strict=True)}
        return Done(plan, Result(token_ids, kept))

    def _compute(self, rows: Sequence[Row]) -> Tensor:
        """Stores the rows' KV; logits [N, vocab_size] of the last position of each row that needs them."""
        if not rows:
            return torch.empty(0, self.vocab_size)
        model = self._model
        config = model.config
        attention = PagedAttention(
            self._pool, rows, num_heads=config.num_heads, windows=config.windows, rope=model.rope
        )
        ends = accumulate(len(row.token_ids) for row in rows)
        wanted = [end - 1 for row, end in zip(rows, ends, strict=True) if row.draws or row.keep_logits]
        token_ids = torch.tensor(self._token_ids(rows))
        return model.forward(token_ids, torch.tensor(wanted, dtype=torch.int64), attention)

    def _token_ids(self, rows: Sequence[Row]) -> list[int]:
        return [self._last[row.seq_id] if token == IN_FLIGHT else token for row in rows for token in row.token_ids]

    def _logits_of_draws(self, computed: Tensor, rows: Sequence[Row], plan: Plan) -> Tensor:
        """A row of logits for each draw of the plan, in its order."""
        source = [i for i, row in enumerate(rows) for _ in row.draws]
        logits = computed if source == list(range(len(computed))) else computed[source]
        shipped = [part.logits.expand(len(part.draws), -1) for part in plan.shipped]
        return torch.cat((logits, *shipped)) if shipped else logits

    def read_blocks(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        return self._pool.read(block_ids, out)

    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        self._pool.write(block_ids, payload)

    def pack_logits(self, logits: Tensor) -> memoryview:
        return logits.numpy().view(np.uint8).data

    def unpack_logits(self, payload: memoryview) -> Tensor:
        expected = 4 * self.vocab_size
        if payload.nbytes != expected:
            raise ValueError(f"{payload.nbytes} bytes given for logits, which take {expected}")
        return torch.from_numpy(np.frombuffer(payload, np.float32).copy())

    @torch.inference_mode()
    def admit(self, seed: SequenceSeed) -> None:
        self._sampler.admit(seed)

    @torch.inference_mode()
    def retire(self, seq_id: int) -> None:
        self._sampler.retire(seq_id)
