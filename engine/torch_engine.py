"""The engine of plan.py on torch: a model, its KV pool, and a sampler.

A step flattens the tokens of all its rows through the linear layers and attends row by row. On a CPU nothing is gained
by returning early, so `launch` computes the step and the handle holds its result.

Of rows with guesses one draw a row is made at a time, in order and as long as guesses are right: sampling takes in no
token that does not come, and nothing has to be undone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..wire.logprobs import TokenLogprobs
from .attention import PagedAttention
from .chains import Chain, Drawn, chains_of, draw_chains, num_logits, to_result
from .eagle.follower import HeadFollower
from .guesses import Proposer, guesses_of, with_guesses
from .joined_pools import Blocks, JoinedPools
from .kv_pool import KvPool
from .models.llama import Llama
from .plan import IN_FLIGHT, Plan, Result, Row, SequenceSeed
from .pooled_rows import pool_rows
from .pooling import pooled_positions
from .sampler import Sampler
from .streams import NO_STREAMS, Streams
from .token_logprobs import prompt_logprobs, read_logprobs


@dataclass(frozen=True, slots=True)
class Done:
    """The handle of a step that was computed when it was launched."""

    plan: Plan
    outcome: Result

    def result(self) -> Result:
        return self.outcome


class TorchEngine:
    overlaps = False

    def __init__(
        self,
        model: Llama,
        pool: KvPool,
        sampler: Sampler,
        proposer: Proposer | None = None,
        follower: HeadFollower | None = None,
    ) -> None:
        """`proposer` guesses where rows want that of the engine; `follower` keeps a head in step with the model."""
        self._model, self._pool, self._sampler = model, pool, sampler
        self._proposer, self._follower = proposer, follower
        self._blocks: Blocks = pool if follower is None else JoinedPools(pool, follower.cache)
        self._last: dict[int, int] = {}
        self.num_blocks, self.block_size = pool.num_blocks, pool.block_size
        self.bytes_per_block = self._blocks.bytes_per_block
        self.vocab_size = model.config.vocab_size

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Done:
        if plan.copies:
            self._catch_up()
            self._blocks.copy(plan.copies)
        guesses = guesses_of(plan.rows, self._proposer)
        rows = [with_guesses(row, guessed) for row, guessed in zip(plan.rows, guesses, strict=True)]
        token_ids, streams = self._token_ids(rows), self._streams(rows)
        hidden, num_wanted = self._compute(rows, token_ids, streams), sum(map(num_logits, rows))
        logits = self._model.head(hidden[:num_wanted]) if num_wanted else torch.empty(0, self.vocab_size)
        ends = accumulate(map(num_logits, rows))
        kept = {row.seq_id: logits[end - 1].clone() for row, end in zip(rows, ends, strict=True) if row.keep_logits}
        num_scored = sum(row.num_scored for row in rows)
        scored = self._score(rows, hidden[num_wanted : num_wanted + num_scored])
        pooled = pool_rows(rows, hidden[num_wanted + num_scored :], self._model.norm)
        chains = chains_of(rows, guesses, plan.shipped)
        drawn = self._draw(plan, chains, logits)
        if self._follower is not None and rows:
            self._follower.follow(rows, token_ids, streams.features, _num_right(chains, drawn))
        sizes = [size for row in plan.rows for size in _chain_sizes(row)] + [1] * _num_shipped(plan)
        result = to_result(chains, drawn, sizes)
        vectors = {seq_id: vector.numpy() for seq_id, vector in pooled.items()}
        return Done(plan, replace(result, logits=kept, prompt_logprobs=scored, pooled=vectors))

    def _draw(self, plan: Plan, chains: Sequence[Chain], logits: Tensor) -> list[list[Drawn]]:
        """`logits` of the rows; those that were shipped come after them."""
        if plan.shipped:
            logits = torch.cat((logits, *(part.logits[None] for part in plan.shipped)))
        drawn = draw_chains(self._sampler, logits, chains)
        self._last = {chain.draws[0].seq_id: made[-1][0] for chain, made in zip(chains, drawn, strict=True)}
        return drawn

    def _streams(self, rows: Sequence[Row]) -> Streams:
        return self._follower.streams() if self._follower is not None and rows else NO_STREAMS

    def _compute(self, rows: Sequence[Row], token_ids: Sequence[int], streams: Streams) -> Tensor:
        """Stores the rows' KV; the hidden state, before the head, of the positions of each row whose logits are
        needed, then of all positions that are to be scored, then of those that vectors are made of."""
        model = self._model
        config = model.config
        if not rows:
            return torch.empty(0, config.hidden_size, dtype=model.dtype)
        attention = PagedAttention(
            self._pool, rows, num_heads=config.num_heads, windows=config.windows, rope=model.rope
        )
        ends = list(accumulate(len(row.token_ids) for row in rows))
        starts = [end - len(row.token_ids) for row, end in zip(rows, ends, strict=True)]
        wanted: list[int] = []
        for row, end in zip(rows, ends, strict=True):
            wanted += range(end - num_logits(row), end)
        for row, start in zip(rows, starts, strict=True):
            wanted += range(start, start + row.num_scored)
        for row, start in zip(rows, starts, strict=True):
            wanted += [start + position for position in pooled_positions(row)]
        x = F.embedding(torch.tensor(token_ids), model.embedding)
        return model.hidden(x, torch.tensor(wanted, dtype=torch.int64), attention, streams)

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

    def _catch_up(self, seq_ids: Sequence[int] | None = None) -> None:
        if self._follower is not None:
            self._follower.catch_up(seq_ids)

    @torch.inference_mode()
    def read_blocks(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        self._catch_up()
        return self._blocks.read(block_ids, out)

    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        self._blocks.write(block_ids, payload)

    @torch.inference_mode()
    def read_hidden(self, block_id: int) -> memoryview | None:
        """See plan.HeadedEngine."""
        self._catch_up()
        return None if self._follower is None else self._follower.cache.read_hidden(block_id)

    def lend_blocks(self, block_ids: Sequence[int]) -> None:
        """See plan.HeadedEngine. Nobody writes to a host's memory so."""

    def write_hidden(self, block_id: int, payload: memoryview) -> None:
        """See plan.HeadedEngine."""
        assert self._follower is not None, "peers with a head are refused where there is none"
        self._follower.cache.write_hidden(block_id, payload)

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
    def retire(self, *seq_ids: int) -> None:
        self._catch_up(seq_ids)
        for seq_id in seq_ids:
            self._sampler.retire(seq_id)
            if self._proposer is not None:
                self._proposer.retire(seq_id)


def _chain_sizes(row: Row) -> list[int]:
    """Draws that are planned of each chain of a row."""
    return [len(row.draws)] if row.num_drafts else [1] * len(row.draws)


def _num_right(chains: Sequence[Chain], drawn: Sequence[Sequence[Drawn]]) -> dict[int, int]:
    """Guesses that were drawn as they were guessed, by seq_id, of chains that have any."""
    return {
        chain.draws[0].seq_id: len(made) - 1
        for chain, made in zip(chains, drawn, strict=True)
        if chain.guesses is not None
    }


def _num_shipped(plan: Plan) -> int:
    return sum(len(part.draws) for part in plan.shipped)
