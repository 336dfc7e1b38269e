"""The engine of plan.py on a GPU.

Most steps are replays of captured graphs (`step_sizes` says which), from the embedding to the drawn tokens; the others
are launched kernel by kernel. Either way `launch` returns at once: the tokens a step draws stay on the device, where
the next step takes them from, and a copy of them is waited for in `Handle.result`.
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
from ..plan import IN_FLIGHT, Plan, Result, Row, SequenceSeed
from .attention import AttentionState, Chunks, StepAttention
from .inputs import FIELDS, ChunkInputs, EditInputs, Inputs, TokenInputs, edits_to_device, to_device
from .pool import CudaKvPool
from .runtime import Runtime
from .sampler import NO_TOKEN, DeviceSampler
from .sequences import Sequences
from .step_sizes import MAX_CHUNKS, NOTHING_CAPTURED, Ladder, StepSize


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
    """int32, of all draws as they were made, once `wait` has returned."""
    order: Sequence[int] | None = None
    """Where the draws of the plan stand in `tokens`, if elsewhere."""
    kept: dict[int, Tensor] = field(default_factory=dict)

    def result(self) -> Result:
        """Raises ValueError where logits had no finite largest one."""
        self.wait()
        token_ids = (self.tokens if self.order is None else self.tokens[list(self.order)]).tolist()
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
        max_tokens = sizes.max_num_seqs + sizes.max_num_batched_tokens
        self._inputs = Inputs(runtime, max_tokens)
        self._chunk_inputs = ChunkInputs(runtime, MAX_CHUNKS)
        self._edits = EditInputs(runtime, num_slots)
        self._drawn = torch.zeros(max(1, num_slots), dtype=torch.int32, device=device)
        self._chunk_logits = torch.zeros(MAX_CHUNKS, self.vocab_size, device=device)
        self._host_tokens = [runtime.pinned(max(1, num_slots)) for _ in range(2)]
        self._ladder = NOTHING_CAPTURED
        self._graphs: dict[StepSize, Callable[[], None]] = {}
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
        singles = [row for row in plan.rows if _is_decode(row)]
        chunks = [row for row in plan.rows if not _is_decode(row)]
        logits = self._compute(singles, chunks) if plan.rows else self._chunk_logits[:0]
        wanted = [row for row in chunks if row.draws or row.keep_logits]
        kept = {row.seq_id: self._to_host(logits[i]) for i, row in enumerate(wanted) if row.keep_logits}
        self._draw_rest(plan, wanted, logits, len(singles))
        num_draws = len(plan.draws)
        host = self._host_tokens[self._parity][:num_draws]
        if num_draws:
            host.copy_(self._drawn[:num_draws], non_blocking=True)
        return Step(plan, self._runtime.mark(), host.numpy(), _order(plan, singles, chunks), kept)

    def _compute(self, singles: Sequence[Row], chunks: Sequence[Row]) -> Tensor:
        """Stores all KV, draws for `singles` into the first places of `_drawn`; logits of the last position of each
        chunk that needs them."""
        tokens = np.concatenate((self._single_inputs(singles), self._chunk_rows(chunks)), axis=1)
        lengths = [len(row.token_ids) for row in chunks]
        self._upload_edits(singles)
        size = self._ladder.fit(len(singles), sum(lengths), len(chunks))
        if size is None:
            return self._launch_step(singles, chunks, tokens)
        self._inputs.upload(self._parity, tokens, StepSize(len(singles), sum(lengths)), size)
        needing = [index for index, row in enumerate(chunks) if row.draws or row.keep_logits]
        if chunks:
            self._chunk_inputs.upload(self._parity, lengths, size.num_single, needing)
        self._graphs[size]()
        return self._chunk_logits[: len(needing)]

    def _captured_step(self, size: StepSize) -> None:
        """The device's part of a step, from the inputs' places to those of tokens and logits: what graphs repeat."""
        n, inputs = size.num_single, self._inputs.of(size.num_tokens)
        chunks, wanted = None, None
        if size.num_chunk_tokens:
            starts, ends = self._chunk_inputs.tensors
            chunks = Chunks(starts, size.num_chunk_tokens, self._sizes.max_model_len)
            wanted = torch.cat((self._inputs.counting[:n], ends))
        attention = StepAttention(self._attention, inputs.rows, inputs.positions, n, chunks)
        attention.begin()
        logits = self._model.forward_embedded(self._embed(inputs), wanted, attention)
        self._draw_singles(logits, inputs, n)
        if size.num_chunk_tokens:
            self._chunk_logits.copy_(logits[n:])

    def _launch_step(self, singles: Sequence[Row], chunks: Sequence[Row], tokens: np.ndarray) -> Tensor:
        """As `_compute`, kernel by kernel."""
        n, num_tokens = len(singles), tokens.shape[1]
        size = StepSize(n, num_tokens - n)
        self._inputs.upload(self._parity, tokens, size, size)
        inputs, ends = self._inputs.of(num_tokens), list(range(n))
        runs: list[Run] = []
        for row in chunks:
            first = runs[-1].first_token + runs[-1].num_tokens if runs else 0
            runs.append(Run(first, len(row.token_ids), row.start))
            if row.draws or row.keep_logits:
                ends.append(n + first + len(row.token_ids) - 1)
        wanted, described = None, None
        if runs:
            starts = [*(run.first_token for run in runs), num_tokens - n]
            described = Chunks(
                to_device(self._runtime, np.array(starts, np.int32)),
                max(run.num_tokens for run in runs),
                max(run.start + run.num_tokens for run in runs),
                runs,
            )
            wanted = to_device(self._runtime, np.array(ends, np.int64))
        attention = StepAttention(self._attention, inputs.rows, inputs.positions, n, described)
        attention.begin()
        logits = self._model.forward_embedded(self._embed(inputs), wanted, attention)
        self._draw_singles(logits, inputs, n)
        return logits[n:]

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

    # Drawing.

    def _draw_singles(self, logits: Tensor, inputs: TokenInputs, num_single: int) -> None:
        if num_single:
            assert self._sampler is not None
            rows, positions = inputs.rows[:num_single], inputs.draw_positions[:num_single]
            self._sampler.sample(logits[:num_single], rows, positions, self._edits.tensors, self._drawn[:num_single])

    def _draw_rest(self, plan: Plan, wanted: Sequence[Row], logits: Tensor, num_drawn: int) -> None:
        """The draws of chunks, then those from shipped logits, into the places of `_drawn` after the first ones."""
        draws = [draw for row in wanted for draw in row.draws]
        parts = []
        if draws:
            source = [index for index, row in enumerate(wanted) for _ in row.draws]
            parts.append(logits[to_device(self._runtime, np.array(source, np.int64))])
        for shipped in plan.shipped:
            draws += shipped.draws
            parts.append(shipped.logits.expand(len(shipped.draws), -1))
        if draws:
            assert self._sampler is not None
            slots, positions = [self._sequences.slot(d.seq_id) for d in draws], [d.position for d in draws]
            given = to_device(self._runtime, np.array((slots, positions), np.int32))
            edits = self._sampler.edits(slots, positions)
            sent = None if edits is None else edits_to_device(self._runtime, edits)
            out = self._drawn[num_drawn : num_drawn + len(draws)]
            self._sampler.sample(torch.cat(parts), given[0], given[1], sent, out)

    def _to_host(self, tensor: Tensor) -> Tensor:
        host = self._runtime.pinned(*tensor.shape, dtype=tensor.dtype)
        return host.copy_(tensor, non_blocking=True)

    # What the device is told.

    @property
    def _parity(self) -> int:
        return self._num_steps % 2

    def _upload_edits(self, singles: Sequence[Row]) -> None:
        if self._sampler is not None:
            slots = [self._sequences.slot(row.seq_id) for row in singles]
            self._edits.upload(self._sampler.edits(slots, [row.draws[0].position for row in singles]))

    def _single_inputs(self, rows: Sequence[Row]) -> np.ndarray:
        """int32 [fields, rows] in the order of `inputs.FIELDS`."""
        columns = []
        for row in rows:
            slot, token = self._sequences.slot(row.seq_id), row.token_ids[0]
            place = -1 if token == IN_FLIGHT else token, slot, row.start, row.draws[0].position
            columns.append((*place, *self._sequences.new_block(slot, row)))
        return np.array(columns, np.int32).reshape(-1, len(FIELDS)).T

    def _chunk_rows(self, rows: Sequence[Row]) -> np.ndarray:
        """As `_single_inputs`, int32 [fields, tokens]."""
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

    # Graphs.

    @torch.inference_mode()
    def capture(self, ladder: Ladder) -> None:
        """Steps of these sizes are replayed from now on. Padding alone is computed meanwhile."""
        nothing = np.empty((len(FIELDS), 0), np.int32)
        # The largest first: the others find room in its memory.
        for size in sorted(ladder.sizes, key=lambda size: size.num_tokens, reverse=True):
            self._inputs.upload(0, nothing, StepSize(0, 0), size)
            self._chunk_inputs.upload(0, (), size.num_single, ())
            self._captured_step(size)  # compiles, and lets libraries allocate
            self._graphs[size] = self._runtime.capture(partial(self._captured_step, size))
        self._ladder = ladder

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


def _order(plan: Plan, singles: Sequence[Row], chunks: Sequence[Row]) -> list[int] | None:
    """Of the draws of a plan, where they were made: rows of one token first, then chunks, then shipped logits."""
    made = [*singles, *chunks]
    if all(a is b for a, b in zip(made, plan.rows, strict=True)):
        return None
    places: dict[int, list[int]] = {}
    count = 0
    for row in made:
        places[id(row)] = list(range(count, count + len(row.draws)))
        count += len(row.draws)
    order = [place for row in plan.rows for place in places[id(row)]]
    return [*order, *range(count, len(plan.draws))]
