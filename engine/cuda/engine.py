"""The engine of plan.py on a GPU.

Most steps are replays of captured graphs (`step_sizes` says which), from the embedding to the drawn tokens; the others
are launched kernel by kernel. Either way `launch` returns at once: the tokens a step draws stay on the device, where
the next step takes them from, and a copy of them is waited for in `Handle.result`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels.begin_step import begin_step
from ...text.phrases import Phrases
from ..eagle.head import EagleHead
from ..guesses import Guesses, followed, without_guesses
from ..models.llama import Llama
from ..plan import DRAFT, Draw, Plan, Row, SequenceSeed
from ..sampler import Sampler
from ..streams import NO_STREAMS, Streams
from .attention import AttentionState, Chunks, StepAttention
from .chunk_runs import chunk_runs, describe, needs_logits, wanted_tokens
from .draw_order import draw_order
from .drawing import Drawing, DrawSizes
from .drawn_states import DrawnStates, StatesPart
from .following_head import Followed, FollowingHead
from .grid import Grid
from .head_proposer import HeadProposer
from .inputs import FIELDS, ChunkInputs, Inputs, TokenInputs, to_device, to_host
from .model_proposer import Draft, ModelProposer
from .pools import Pools
from .prompt_facts import NO_FACTS, PromptFacts
from .proposer import DeviceProposer
from .readback import Readback
from .row_inputs import RowInputs
from .runtime import Runtime
from .sequences import Sequences
from .step import Step
from .step_sizes import MAX_CHUNKS, NOTHING_CAPTURED, Ladder, StepSize


@dataclass(frozen=True, slots=True)
class Sizes:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    """Tokens."""
    max_drafts: int = 0
    """Guesses of a row."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """What was guessed here."""

    tokens: np.ndarray
    """int32, of a grid, once `wait` or the step is done."""
    wait: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step has computed, on its way from the device, but for tokens that it drew."""

    logits: Tensor
    """fp32 [N, vocab_size]: of the chunks that need them."""
    proposed: Proposed | None = None
    facts: PromptFacts = NO_FACTS


class CudaEngine:
    overlaps = True

    def __init__(
        self,
        model: Llama,
        pools: Pools,
        runtime: Runtime,
        sizes: Sizes,
        *,
        draws: bool = True,
        pdl: bool = False,
        phrases: Phrases | None = None,
        sampler: Sampler | None = None,
        draft: Draft | None = None,
        head: EagleHead | None = None,
    ) -> None:
        """`draws`: False on a worker that computes prompts alone, which then needs no sampling state. `phrases`: see
        `DeviceSampler`. `sampler`, on this device, draws for requests for which the kernels do not (`can_draw`).
        `draft` guesses where rows want that of the engine, or `head`, which follows the model in `pools`."""
        self._model, self._pools, self._runtime, self._sizes = model, pools, runtime, sizes
        pool = pools.model
        self.num_blocks, self.block_size = pool.num_blocks, pool.block_size
        self.bytes_per_block, self.vocab_size = pools.blocks.bytes_per_block, model.config.vocab_size
        num_slots = sizes.max_num_seqs if draws else 0
        device = runtime.device
        max_blocks = -(-sizes.max_model_len // pool.block_size)
        self._sequences = Sequences(runtime, num_slots, sizes.max_num_seqs, max_blocks)
        self._drawing = Drawing(
            runtime,
            self._sequences,
            DrawSizes(num_slots, sizes.max_drafts, self.vocab_size, sizes.max_model_len),
            phrases=phrases,
            sampler=sampler,
        )
        self._attention = AttentionState(
            model.config,
            pool,
            model.rope.table(max_blocks * pool.block_size).to(device),
            self._sequences.block_tables,
            max(1, num_slots),
            1 + sizes.max_drafts,
            pdl=pdl,
        )
        max_tokens = sizes.max_num_seqs * (1 + sizes.max_drafts) + sizes.max_num_batched_tokens
        self._inputs = Inputs(runtime, max_tokens)
        self._rows = RowInputs(self._sequences, self._drawing)
        self._chunk_inputs = ChunkInputs(runtime, MAX_CHUNKS)
        self._chunk_logits = torch.zeros(MAX_CHUNKS, self.vocab_size, device=device)
        self._readback = Readback(runtime, self._drawing.tokens)
        self._ladder = NOTHING_CAPTURED
        self._graphs: dict[StepSize, Callable[[], None]] = {}
        self._halves: dict[StepSize, tuple[Callable[[], None], Callable[[], None]]] = {}
        """The model's part, and that of drawing."""
        self._proposals: dict[StepSize, Callable[[], None]] = {}
        self._head = None if head is None else self._follow_with(head, max_blocks)
        self._proposer = self._make_proposer(draft) if draws else None
        self._host_proposed = [runtime.pinned(len(self._drawing.tokens) // 2) for _ in range(2)]
        self._num_steps = 0
        self._has_aside = False

    def _follow_with(self, head: EagleHead, max_blocks: int) -> FollowingHead:
        pool = self._pools.head
        assert pool is not None
        return FollowingHead(
            head,
            self._model,
            pool,
            self._sequences,
            self._runtime,
            self._drawing.last_tokens,
            max_num_seqs=self._sizes.max_num_seqs,
            max_positions=max_blocks * pool.block_size,
            pdl=self._attention.pdl,
        )

    def _make_proposer(self, draft: Draft | None) -> DeviceProposer | None:
        sampler, runtime = self._drawing.sampler, self._runtime
        assert sampler is not None
        if self._head is not None:
            return HeadProposer(self._head.follower, sampler, self._sizes.max_num_seqs, runtime.device)
        if draft is None:
            return None
        return ModelProposer.of(draft, self._attention, runtime, self._sequences, sampler, self._sizes.max_num_seqs)

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens that a step computes at most."""
        return self._sizes.max_num_batched_tokens

    @property
    def kv(self) -> Tensor | None:
        """See Pools: for transports that move blocks on the device."""
        return self._pools.kv

    # Steps.

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Step:
        if self._has_aside:
            self._runtime.join_aside()
            self._has_aside = False
        self._num_steps += 1
        if self._head is not None:
            self._head.copy(plan.copies)
        self._pools.blocks.copy(plan.copies)
        is_single = [self._is_single(row) for row in plan.rows]
        chunks = [without_guesses(row) for row, single in zip(plan.rows, is_single, strict=True) if not single]
        grid = self._grid([row for row, single in zip(plan.rows, is_single, strict=True) if single], chunks)
        rest_draws = [draw for row in chunks for draw in row.draws]
        rest_draws += [draw for part in plan.shipped for draw in part.draws]
        computed = self._compute(grid, chunks, rest_draws)
        wanted, logits = [row for row in chunks if needs_logits(row)], computed.logits
        kept = {row.seq_id: to_host(self._runtime, logits[i]) for i, row in enumerate(wanted) if row.keep_logits}
        states: list[StatesPart] = []
        logprobs = None
        if tells_more := self._drawing.tells_more:
            states += self._drawing.take_states(list(grid.placed), 0, grid.num_turns > 1)
        rest, eager = self._drawing.draw_rest(plan, wanted, logits, grid.num_tokens)
        if tells_more:
            states += self._drawing.take_states(list(enumerate(rest_draws)), grid.num_tokens, False)
            placed = [*grid.placed, *enumerate(rest_draws, grid.num_tokens)]
            logprobs = self._drawing.measure(placed, grid.num_tokens, rest)
        tokens = self._readback.take(self._parity, grid.num_tokens + len(rest_draws))
        order, guesses = draw_order(plan, is_single, grid)
        return Step(
            plan,
            self._runtime.mark(),
            tokens,
            order,
            guesses,
            None if computed.proposed is None else computed.proposed.tokens,
            grid.refused,
            partial(self._on_proposed, [grid.rows[index] for index in grid.asking]),
            kept,
            logprobs,
            DrawnStates(states) if states else None,
            computed.facts,
            eager,
        )

    def _grid(self, rows: Sequence[Row], chunks: Sequence[Row]) -> Grid:
        """Guesses are left out beside chunks, and where no captured step has room for them."""
        max_drafts = max((row.num_drafts for row in rows), default=0)
        if not max_drafts:
            return Grid.plain(rows)
        num_asking = sum(self._drawing.tells_logprobs(row.seq_id) for row in rows)
        if chunks or num_asking * (1 + max_drafts) > self._drawing.num_kept:
            return Grid.of(rows, len(rows), 0)
        size = self._ladder.fit_drafted(len(rows), max_drafts) if self._graphs else StepSize(len(rows), 0, max_drafts)
        if size is None:
            return Grid.of(rows, len(rows), 0)
        rows = self._with_ready_guesses(rows)
        has_guesses = any(row.num_drafts for row in rows)
        return Grid.of(rows, size.num_single, size.num_drafts) if has_guesses else Grid.of(rows, len(rows), 0)

    def _with_ready_guesses(self, rows: Sequence[Row]) -> list[Row]:
        """Without those that the proposer cannot make now, or that must be held against a grammar and bans at once."""
        asking = [row for row in rows if DRAFT in row.token_ids[1:2]]
        asking = [row for row in asking if row.follow is None or not any(draw.bans for draw in row.draws)]
        ready = self._proposer.ready(asking) if asking and self._proposer is not None else set()
        return [
            without_guesses(row) if DRAFT in row.token_ids[1:2] and row.seq_id not in ready else row for row in rows
        ]

    def _propose(self, grid: Grid, num_tokens: int, size: StepSize | None) -> Proposed | None:
        """The guesses of rows that ask for them, made before the step of so many tokens that verifies them."""
        if not grid.asking:
            return None
        inputs = self._inputs.of(num_tokens)
        assert self._proposer is not None
        self._proposer.upload(self._parity, grid.rows)
        if size is None:
            self._proposer.propose(inputs, grid.stride, grid.num_turns)
        else:
            self._proposals[size]()
        host = self._host_proposed[self._parity][: grid.num_tokens]
        host.copy_(inputs.token_ids[: grid.num_tokens], non_blocking=True)
        return Proposed(host.numpy(), self._runtime.mark())

    def _follow(self, grid: Grid, num_tokens: int, proposed: Proposed | None) -> None:
        """Holds guesses against grammars while the model computes: rows are drawn no further than what they allow."""
        guided = {index: grid.rows[index].token_ids[1:] for index in grid.guided}
        if not guided:
            return
        if proposed is not None and any(DRAFT in guesses for guesses in guided.values()):
            proposed.wait()
            for index, guesses in guided.items():
                if DRAFT in guesses:
                    guided[index] = proposed.tokens[list(grid.places(index)[1:])].tolist()
        for index, guesses in guided.items():
            if (look_ahead := grid.rows[index].look_ahead) is not None:
                look_ahead(guesses)
        later = [row.draws[1:] for row in grid.rows]
        for index, guesses in guided.items():
            found = followed(grid.rows[index], guesses)
            num_allowed = len(found.token_ids)
            later[index] = found.draws[1 : 1 + num_allowed]
            grid.refused.update(grid.places(index)[1 + num_allowed :])
        self._drawing.set_later_masks(grid, later)
        if grid.refused:
            places = to_device(self._runtime, np.array(sorted(grid.refused), np.int64))
            self._inputs.of(num_tokens).rows.index_fill_(0, places, -1)

    def _on_proposed(self, rows: Sequence[Row], guesses: Sequence[Guesses]) -> None:
        if self._proposer is not None:
            self._proposer.verified(rows, guesses)

    def _compute(self, grid: Grid, chunks: Sequence[Row], rest: Sequence[Draw]) -> Computed:
        """Stores all KV and draws for `grid`; `rest` is drawn later."""
        if not grid.rows and not chunks:
            self._drawing.prepare(grid, rest)
            return Computed(self._chunk_logits[:0])
        tokens = self._rows.grid(grid)
        if chunks:
            tokens = np.concatenate((tokens, self._rows.chunks(self._parity, chunks)), axis=1)
        lengths = [len(row.token_ids) for row in chunks]
        if self._head is not None:
            self._head.begin(tokens[1, : len(grid.rows)], chunks, has_guesses=grid.num_turns > 1)
        size = self._fit(grid, lengths)
        if size is None or any(row.num_scored or row.pooling for row in chunks):
            self._drawing.prepare(grid, rest)
            return self._launch_step(grid, chunks, tokens)
        given = StepSize(grid.stride, sum(lengths), grid.num_turns - 1)
        self._inputs.upload(self._parity, tokens, given, size)
        if grid.has_masks and size in self._halves:
            return self._compute_while_masks_are_made(grid, rest, size)
        self._drawing.prepare(grid, rest)
        proposed = self._propose(grid, size.num_tokens, size)
        needing = [index for index, row in enumerate(chunks) if needs_logits(row)]
        if chunks:
            self._chunk_inputs.upload(self._parity, lengths, size.num_single, needing)
        self._graphs[size]()
        return Computed(self._chunk_logits[: len(needing)], proposed)

    def _compute_while_masks_are_made(self, grid: Grid, rest: Sequence[Draw], size: StepSize) -> Computed:
        """Of a step whose inputs were uploaded, but for masks and edits; as `_compute`. Only what is guessed here needs
        the first masks before."""
        compute, draw = self._halves[size]
        proposed = None
        if grid.asking:
            self._drawing.prepare(grid, rest)
            proposed = self._propose(grid, size.num_tokens, size)
            compute()
        else:
            compute()
            self._drawing.prepare(grid, rest)
        self._follow(grid, size.num_tokens, proposed)
        draw()
        return Computed(self._chunk_logits[:0], proposed)

    def _fit(self, grid: Grid, chunk_lengths: Sequence[int]) -> StepSize | None:
        """The captured step that holds these, if one does."""
        if grid.num_turns > 1:
            return StepSize(grid.stride, 0, grid.num_turns - 1) if self._graphs else None
        if grid.has_masks and not chunk_lengths:
            return self._ladder.fit_masked(grid.stride)
        return self._ladder.fit(grid.stride, sum(chunk_lengths), len(chunk_lengths))

    def _captured_step(self, size: StepSize) -> None:
        """The device's part of a step, from the inputs' places to those of tokens and logits: what graphs repeat."""
        self._captured_draws(size, self._captured_logits(size))

    def _captured_logits(self, size: StepSize) -> tuple[Tensor, Followed | None]:
        n, inputs = size.num_decode_tokens, self._inputs.of(size.num_tokens)
        chunks, wanted = None, None
        if size.num_chunk_tokens:
            starts, ends = self._chunk_inputs.tensors
            chunks = Chunks(starts, size.num_chunk_tokens, self._sizes.max_model_len)
            wanted = torch.cat((self._inputs.counting[:n], ends))
        attention = StepAttention.of(self._attention, inputs.rows, inputs.positions, n, chunks, 1 + size.num_drafts)
        attention.begin()
        num_lagging = 0 if size.num_drafts else n
        streams = self._streams(inputs, num_lagging)
        hidden = self._model.hidden(self._embed(inputs, self._model.embedding), wanted, attention, streams)
        logits = self._model.head(hidden) if len(hidden) else self._chunk_logits[:0]
        return logits, self._follow_head(inputs, streams, n, size.num_single, num_lagging)

    def _captured_draws(self, size: StepSize, computed: tuple[Tensor, Followed | None]) -> None:
        (logits, followed), inputs = computed, self._inputs.of(size.num_tokens)
        turns = self._drawing.draw_grid(logits, inputs, size.num_single, 1 + size.num_drafts)
        self._keep_hidden(followed, turns, 0 if size.num_drafts else size.num_decode_tokens)
        if size.num_chunk_tokens:
            self._chunk_logits.copy_(logits[size.num_decode_tokens :])

    def _launch_step(self, grid: Grid, chunks: Sequence[Row], tokens: np.ndarray) -> Computed:
        """As `_compute`, kernel by kernel."""
        n, num_tokens = grid.num_tokens, tokens.shape[1]
        size = StepSize(n, num_tokens - n)
        self._inputs.upload(self._parity, tokens, size, size)
        inputs = self._inputs.of(num_tokens)
        proposed = self._propose(grid, num_tokens, None)
        described, wanted, num_logits = None, None, n
        if chunks:
            runs = chunk_runs(chunks)
            described = describe(self._runtime, runs)
            tokens_wanted, num_logits = wanted_tokens(n, chunks, runs)
            wanted = to_device(self._runtime, np.array(tokens_wanted, np.int64))
        attention = StepAttention.of(self._attention, inputs.rows, inputs.positions, n, described, grid.num_turns)
        attention.begin()
        num_lagging = 0 if grid.num_turns > 1 else n
        streams = self._streams(inputs, num_lagging)
        hidden = self._model.hidden(self._embed(inputs, self._model.embedding), wanted, attention, streams)
        logits = self._model.head(hidden[:num_logits]) if num_logits else self._chunk_logits[:0]
        facts = PromptFacts.launch(self._runtime, self._model, chunks, hidden[num_logits:])
        followed = self._follow_head(inputs, streams, n, grid.stride, num_lagging)
        self._follow(grid, num_tokens, proposed)
        turns = self._drawing.draw_grid(logits, inputs, grid.stride, grid.num_turns)
        self._keep_hidden(followed, turns, num_lagging)
        return Computed(logits[n:], proposed, facts)

    def _embed(self, inputs: TokenInputs, embedding: Tensor) -> Tensor:
        return begin_step(
            inputs.token_ids,
            inputs.rows,
            inputs.new_indices,
            inputs.new_blocks,
            self._drawing.last_tokens,
            self._sequences.block_tables,
            embedding,
        )

    # A head that follows the model.

    def _streams(self, inputs: TokenInputs, num_lagging: int) -> Streams:
        return NO_STREAMS if self._head is None else self._head.streams(inputs, num_lagging)

    def _follow_head(
        self, inputs: TokenInputs, streams: Streams, num_single: int, stride: int, num_lagging: int
    ) -> Followed | None:
        return None if self._head is None else self._head.follow(inputs, streams, num_single, stride, num_lagging)

    def _keep_hidden(self, followed: Followed | None, turns: Sequence[Tensor], num_lagging: int) -> None:
        if self._head is not None and followed is not None:
            self._head.keep(followed, turns, num_lagging)

    def _is_single(self, row: Row) -> bool:
        """One token in, and guesses, the next of the same sequence out, and kernels draw them."""
        if row.keep_logits or row.prompt_logprobs is not None or row.pooling or row.seq_id in self._drawing.eager:
            return False
        if len(row.token_ids) != 1 + row.num_drafts or len(row.draws) != len(row.token_ids):
            return False
        return all(draw.seq_id == row.seq_id for draw in row.draws)

    @property
    def _parity(self) -> int:
        return self._num_steps % 2

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
            if ladder.has_halves(size):
                self._halves[size] = self._runtime.capture_in_two(
                    partial(self._captured_logits, size), partial(self._captured_draws, size)
                )
            # What has guesses waits for the host anyway: that its halves are launched apart is not to be seen.
            is_whole = not size.num_drafts
            self._graphs[size] = (
                self._runtime.capture(partial(self._captured_step, size)) if is_whole else _both(*self._halves[size])
            )
            if self._proposer is not None and size.num_drafts:
                inputs = self._inputs.of(size.num_tokens)
                propose = partial(self._proposer.propose, inputs, size.num_single, 1 + size.num_drafts)
                propose()
                self._proposals[size] = self._runtime.capture(propose)
        self._ladder = ladder
        if self._head is not None:
            self._head.capture()

    # Blocks and logits, between this process's host memory and the device.

    @torch.inference_mode()
    def read_blocks(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        if self._head is not None:
            self._head.before_reads()
        return self._pools.blocks.read(block_ids, out)

    @torch.inference_mode()
    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        if self._head is not None:
            self._head.before_writes()
            self._head.cache.forget(block_ids)
        self._pools.blocks.write(block_ids, payload)
        self._has_aside = True

    @torch.inference_mode()
    def read_hidden(self, block_id: int) -> memoryview | None:
        """See plan.HeadedEngine."""
        if self._head is None:
            return None
        self._head.before_reads()
        return self._head.cache.read(block_id)

    @torch.inference_mode()
    def write_hidden(self, block_id: int, payload: memoryview) -> None:
        """See plan.HeadedEngine."""
        assert self._head is not None, "peers with a head are refused where there is none"
        self._head.before_writes()
        self._head.cache.write(block_id, payload)
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
        """Raises ValueError where the request names what is not in the vocabulary, or cannot be done."""
        slot = self._sequences.admit(seed.seq_id)
        try:
            self._drawing.admit(slot, seed)
        except ValueError:
            self._drawing.retire(self._sequences.retire(seed.seq_id), seed.seq_id)
            raise

    def retire(self, *seq_ids: int) -> None:
        if seq_ids:  # none after most steps, which then do not even enter the mode
            self._retire(seq_ids)

    @torch.inference_mode()
    def _retire(self, seq_ids: Sequence[int]) -> None:
        if self._head is not None:
            self._head.retire([self._sequences.slot(seq_id) for seq_id in seq_ids])
        for seq_id in seq_ids:
            self._drawing.retire(self._sequences.retire(seq_id), seq_id)
            if self._proposer is not None:
                self._proposer.retire(seq_id)


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        first()
        second()

    return run
