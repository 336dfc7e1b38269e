"""The engine of plan.py on a GPU.

A step whose rows are all sequences that draw their next token is a replay of a captured graph, from the embedding to
the drawn token; any other runs kernel by kernel. Either way `launch` returns at once: the tokens a step draws stay on
the device, where the next step takes them from, and a copy of them is waited for in `Handle.result`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels.begin_step import begin_step
from ...kernels.vendor_attention import Run
from ..models.llama import Llama
from ..plan import IN_FLIGHT, Draw, Plan, Result, Row, SequenceSeed
from .attention import AttentionState, StepAttention
from .inputs import FIELDS, EditInputs, Inputs, TokenInputs, to_device
from .pool import CudaKvPool
from .runtime import Runtime
from .sampler import NO_TOKEN, DeviceSampler
from .sequences import Sequences


@dataclass(frozen=True, slots=True)
class Sizes:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    """Tokens."""


@dataclass(frozen=True, slots=True)
class Step:
    """A launched step."""

    plan: Plan
    wait: Callable[[], None]
    tokens: np.ndarray
    """int32, of all draws in their order, once `wait` has returned."""
    kept: dict[int, Tensor] = field(default_factory=dict)

    def result(self) -> Result:
        """Raises ValueError where logits had no finite largest one."""
        self.wait()
        token_ids = self.tokens.tolist()
        if NO_TOKEN in token_ids:
            bad = [draw.seq_id for draw, token in zip(self.plan.draws, token_ids, strict=True) if token == NO_TOKEN]
            raise ValueError(f"no finite largest logit for sequences {bad}")
        return Result(token_ids, self.kept)


class CudaEngine:
    overlaps = True

    def __init__(
        self, model: Llama, pool: CudaKvPool, runtime: Runtime, sizes: Sizes, *, draws: bool = True, pdl: bool = False
    ) -> None:
        """`draws`: False on a worker that computes prompts alone, which then needs no sampling state."""
        self._model, self._pool, self._runtime, self._sizes = model, pool, runtime, sizes
        self.num_blocks, self.block_size = pool.num_blocks, pool.block_size
        self.bytes_per_block, self.vocab_size = pool.bytes_per_block, model.config.vocab_size
        num_slots = sizes.max_num_seqs if draws else 0
        device = runtime.device
        self._sampler = DeviceSampler(num_slots, self.vocab_size, device) if draws else None
        self._no_tokens = torch.zeros(1, dtype=torch.int32, device=device)
        max_blocks = -(-sizes.max_model_len // pool.block_size)
        self._sequences = Sequences(runtime, num_slots, sizes.max_num_seqs, max_blocks)
        self._attention = AttentionState(
            model.config,
            pool,
            model.rope.table(max_blocks * pool.block_size).to(device),
            self._sequences.block_tables,
            max(1, num_slots),
            pdl=pdl,
        )
        self._max_tokens = max(sizes.max_num_seqs, sizes.max_num_batched_tokens)
        self._inputs = Inputs(runtime, self._max_tokens)
        self._edits = EditInputs(runtime)
        self._drawn = torch.zeros(max(1, num_slots), dtype=torch.int32, device=device)
        self._host_tokens = [runtime.pinned(max(1, num_slots)) for _ in range(2)]
        self._graphs: dict[int, Callable[[], None]] = {}
        self._num_steps = 0
        self._has_aside = False

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens that a step computes at most."""
        return self._sizes.max_num_batched_tokens

    @property
    def kv(self) -> Tensor:
        """The pool, as `CudaKvPool.kv`: for transports that move blocks on the device."""
        return self._pool.kv

    # Steps.

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Step:
        if self._has_aside:
            self._runtime.join_aside()
            self._has_aside = False
        self._num_steps += 1
        self._pool.copy(plan.copies)
        if plan.rows and all(_is_decode(row) for row in plan.rows):
            return self._decode(plan)
        return self._run(plan)

    def _decode(self, plan: Plan) -> Step:
        """Every row draws the next token of its own sequence; shipped logits are drawn from beside."""
        num_rows = len(plan.rows)
        size = next((size for size in self._graphs if size >= num_rows), num_rows)
        tokens = self._decode_inputs(plan.rows)
        self._inputs.upload(self._parity, tokens, size)
        draws = [row.draws[0] for row in plan.rows]
        assert self._sampler is not None
        self._edits.upload(self._sampler.edits(tokens[1].tolist(), [draw.position for draw in draws]))
        if size in self._graphs:
            self._graphs[size]()
        else:
            self._decode_step(size)
        if plan.shipped:
            shipped, positions = self._draws_of([d for part in plan.shipped for d in part.draws])
            self._sample(self._shipped_logits(plan), shipped, positions, self._drawn[num_rows:])
        return self._finish(plan, num_rows + len(plan.draws) - len(draws), {})

    def _decode_step(self, size: int) -> None:
        """The device's part of a decode step, from the inputs' place to `_drawn`: what graphs repeat."""
        assert self._sampler is not None
        inputs = self._inputs.of(size)
        attention = StepAttention(self._attention, inputs.rows, inputs.positions, size)
        attention.begin()
        x = self._embed(inputs)
        logits = self._model.forward_embedded(x, None, attention)
        self._sampler.sample(logits, inputs.rows, inputs.draw_positions, self._edits.tensors, self._drawn[:size])

    def _run(self, plan: Plan) -> Step:
        """Rows of any kind: decode rows first, as schedulers put them, then chunks."""
        singles = [row for row in plan.rows if _is_decode(row)]
        chunks = [row for row in plan.rows if not _is_decode(row)]
        logits = torch.empty(0, self.vocab_size, device=self._runtime.device)
        wanted = [*singles, *(row for row in chunks if row.draws or row.keep_logits)]
        if plan.rows:
            logits = self._forward(singles, chunks)
        kept = {
            row.seq_id: self._to_host(logits[index]) for index, row in enumerate(wanted) if row.keep_logits
        }  # before drawing, which overwrites them
        draws = plan.draws
        if draws:
            order = {id(row): index for index, row in enumerate(wanted)}
            source = [order[id(row)] for row in plan.rows for _ in row.draws]
            if source != list(range(len(logits))):
                logits = logits[to_device(self._runtime, np.array(source, np.int64))]
            if plan.shipped:
                logits = torch.cat((logits, self._shipped_logits(plan)))
            self._sample(logits, *self._draws_of(draws), self._drawn)
        return self._finish(plan, len(draws), kept)

    def _forward(self, singles: Sequence[Row], chunks: Sequence[Row]) -> Tensor:
        """Stores KV; logits of decode rows and of the last position of chunks that need them."""
        tokens = np.concatenate((self._decode_inputs(singles), self._chunk_inputs(chunks)), axis=1)
        num_tokens = tokens.shape[1]
        self._inputs.upload(self._parity, tokens, num_tokens)
        inputs, runs, starts, wanted = self._inputs.of(num_tokens), [], [0], list(range(len(singles)))
        for row in chunks:
            runs.append(Run(starts[-1], len(row.token_ids), row.start))
            starts.append(starts[-1] + len(row.token_ids))
            if row.draws or row.keep_logits:
                wanted.append(len(singles) + starts[-1] - 1)
        run_starts = to_device(self._runtime, np.array(starts, np.int32))
        attention = StepAttention(self._attention, inputs.rows, inputs.positions, len(singles), runs, run_starts)
        attention.begin()
        x = self._embed(inputs)
        return self._model.forward_embedded(x, to_device(self._runtime, np.array(wanted, np.int64)), attention)

    def _embed(self, inputs: TokenInputs) -> Tensor:
        last_tokens = self._no_tokens if self._sampler is None else self._sampler.table.last_token
        return begin_step(
            inputs.token_ids,
            inputs.rows,
            inputs.new_indices,
            inputs.new_blocks,
            last_tokens,
            self._sequences.block_tables,
            self._model.embedding,
        )

    def _finish(self, plan: Plan, num_draws: int, kept: dict[int, Tensor]) -> Step:
        host = self._host_tokens[self._parity][:num_draws]
        if num_draws:
            host.copy_(self._drawn[:num_draws], non_blocking=True)
        return Step(plan, self._runtime.mark(), host.numpy(), kept)

    # What the device is told.

    @property
    def _parity(self) -> int:
        return self._num_steps % 2

    def _decode_inputs(self, rows: Sequence[Row]) -> np.ndarray:
        """int32 [fields, rows] in the order of `inputs.FIELDS`."""
        columns = []
        for row in rows:
            slot = self._sequences.slot(row.seq_id)
            token = row.token_ids[0]
            columns.append(
                (
                    -1 if token == IN_FLIGHT else token,
                    slot,
                    row.start,
                    row.draws[0].position,
                    *self._sequences.new_block(slot, row),
                )
            )
        return np.array(columns, np.int32).reshape(-1, len(FIELDS)).T

    def _chunk_inputs(self, rows: Sequence[Row]) -> np.ndarray:
        parts = [np.empty((len(FIELDS), 0), np.int32)]
        for index, row in enumerate(rows):
            num_tokens = len(row.token_ids)
            part = np.zeros((len(FIELDS), num_tokens), np.int32)
            part[0] = row.token_ids
            part[1] = self._sequences.chunk_row(self._parity, index, row)
            part[2] = np.arange(row.start, row.start + num_tokens)
            part[4] = -1
            parts.append(part)
        return np.concatenate(parts, axis=1)

    def _draws_of(self, draws: Sequence[Draw]) -> tuple[list[int], list[int]]:
        return [self._sequences.slot(draw.seq_id) for draw in draws], [draw.position for draw in draws]

    def _sample(self, logits: Tensor, slots: list[int], positions: list[int], out: Tensor) -> None:
        assert self._sampler is not None
        runtime = self._runtime
        given = to_device(runtime, np.array((slots, positions), np.int32))
        edits = self._sampler.edits(slots, positions)
        sent = None
        if edits is not None:
            count = np.array([len(edits)], np.int32)
            rows, ids, values, counted = (to_device(runtime, x) for x in (edits.rows, edits.ids, edits.values, count))
            sent = (rows, ids, values, counted)
        self._sampler.sample(logits, given[0], given[1], sent, out[: len(slots)])

    def _shipped_logits(self, plan: Plan) -> Tensor:
        return torch.cat([part.logits.expand(len(part.draws), -1) for part in plan.shipped])

    def _to_host(self, tensor: Tensor) -> Tensor:
        host = self._runtime.pinned(*tensor.shape, dtype=tensor.dtype)
        return host.copy_(tensor, non_blocking=True)

    # Graphs.

    @torch.inference_mode()
    def capture(self, sizes: Sequence[int]) -> None:
        """Graphs of decode steps of these many rows. Padding rows alone are computed meanwhile."""
        for size in sorted(sizes, reverse=True):  # the largest first: the others find room in its memory
            self._inputs.upload(0, np.empty((len(FIELDS), 0), np.int32), size)
            self._decode_step(size)  # compiles, and lets libraries allocate
            self._graphs[size] = self._runtime.capture(partial(self._decode_step, size))
        self._graphs = dict(sorted(self._graphs.items()))

    # Blocks and logits, between this process's host memory and the device.

    @torch.inference_mode()
    def read_blocks(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        return self._pool.read(block_ids, out)

    @torch.inference_mode()
    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        self._pool.write(block_ids, payload)
        self._has_aside = True

    def pack_logits(self, logits: Tensor) -> memoryview:
        return logits.numpy().view(np.uint8).data

    def unpack_logits(self, payload: memoryview) -> Tensor:
        expected = 4 * self.vocab_size
        if payload.nbytes != expected:
            raise ValueError(f"{payload.nbytes} bytes given for logits, which take {expected}")
        host = self._runtime.pinned(self.vocab_size, dtype=torch.float32)
        host.numpy()[:] = np.frombuffer(payload, np.float32)
        with self._runtime.aside():
            self._has_aside = True
            return host.to(self._runtime.device, non_blocking=True)

    # Sequences.

    @torch.inference_mode()
    def admit(self, seed: SequenceSeed) -> None:
        assert self._sampler is not None
        self._sampler.set(self._sequences.admit(seed.seq_id), seed)

    @torch.inference_mode()
    def retire(self, seq_id: int) -> None:
        assert self._sampler is not None
        self._sampler.clear(self._sequences.retire(seq_id))


def _is_decode(row: Row) -> bool:
    """One token in, the next of the same sequence out."""
    return len(row.token_ids) == 1 and not row.keep_logits and [draw.seq_id for draw in row.draws] == [row.seq_id]
