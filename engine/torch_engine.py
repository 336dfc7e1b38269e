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
import torch.nn.functional as F
from torch import Tensor

from ..wire.logprobs import TokenLogprobs
from .attention import PagedAttention
from .kv_pool import KvPool
from .models.llama import Llama
from .plan import IN_FLIGHT, Draw, Plan, Result, Row, SequenceSeed
from .token_logprobs import prompt_logprobs, read_logprobs


class Samples(Protocol):
    """What came of some draws, in their order."""

    @property
    def token_ids(self) -> Tensor:
        """int64 [N]"""

    @property
    def logprobs(self) -> Sequence[TokenLogprobs | None]:
        """As `Result.logprobs`."""

    @property
    def states(self) -> Sequence[bytes]:
        """As `Result.states`."""


class Sampler(Protocol):
    """Draws tokens; keeps what that needs for each admitted sequence."""

    def admit(self, seed: SequenceSeed) -> None: ...

    def retire(self, seq_id: int) -> None: ...

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Samples:
        """fp32 [N, vocab_size], a row for each draw. The logits may be overwritten."""


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
        hidden = self._compute(plan.rows)
        computed = self._model.head(hidden[: len(rows)]) if rows else torch.empty(0, self.vocab_size)
        kept = {row.seq_id: computed[i].clone() for i, row in enumerate(rows) if row.keep_logits}
        scored = self._score(plan.rows, hidden[len(rows) :])
        draws = plan.draws
        if not draws:
            self._last = {}
            return Done(plan, Result([], kept, prompt_logprobs=scored))
        samples = self._sampler.sample(self._logits_of_draws(computed, rows, plan), draws)
        token_ids = samples.token_ids.tolist()
        self._last = {draw.seq_id: token for draw, token in zip(draws, token_ids, strict=True)}
        return Done(plan, Result(token_ids, kept, samples.logprobs, samples.states, scored))

    def _compute(self, rows: Sequence[Row]) -> Tensor:
        """Stores the rows' KV; the hidden state, before the head, of the last position of each row whose logits are
        needed, then of all positions that are to be scored."""
        model = self._model
        config = model.config
        if not rows:
            return torch.empty(0, config.hidden_size, dtype=model.dtype)
        attention = PagedAttention(
            self._pool, rows, num_heads=config.num_heads, windows=config.windows, rope=model.rope
        )
        ends = list(accumulate(len(row.token_ids) for row in rows))
        wanted = [end - 1 for row, end in zip(rows, ends, strict=True) if row.draws or row.keep_logits]
        for row, end in zip(rows, ends, strict=True):
            start = end - len(row.token_ids)
            wanted += range(start, start + row.num_scored)
        token_ids = torch.tensor(self._token_ids(rows))
        x = F.embedding(token_ids, model.embedding)
        return model.hidden(x, torch.tensor(wanted, dtype=torch.int64), attention)

    def _score(self, rows: Sequence[Row], hidden: Tensor) -> dict[int, list[TokenLogprobs]]:
        """How likely the known tokens were that follow the positions of `hidden`."""
        scored: dict[int, list[TokenLogprobs]] = {}
        for row in rows:
            if row.prompt_logprobs is None:
                continue
            targets, num_top = torch.tensor(row.prompt_logprobs.targets), row.prompt_logprobs.num_top
            own, hidden = hidden[: len(targets)], hidden[len(targets) :]
            pieces = prompt_logprobs(self._model.head, own, targets, num_top)
            scored[row.seq_id] = [
                one for piece in pieces for one in read_logprobs(piece, [num_top] * len(piece.logprobs))
            ]
        return scored

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
