"""The engine of plan.py on a GPU.

Most steps are replays of captured graphs (`step_sizes` says which), from the embedding to the drawn tokens; the others
are launched kernel by kernel. Either way `launch` returns at once: the tokens a step draws stay on the device, where
the next step takes them from, and a copy of them is waited for in `Handle.result`. Of a step whose masks follow from
tokens in flight the model's part is launched, and drawing with whatever is told next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...text.phrases import Phrases
from ..eagle.head import EagleHead
from ..guesses import without_guesses
from ..models.llama import Llama
from ..plan import Draw, Plan, Row, SequenceSeed
from ..sampler import Sampler
from .attention import AttentionState
from .captured_steps import CapturedSteps
from .chunk_runs import needs_logits
from .computing import Computed, Computing
from .draw_order import draw_order
from .drawing import Drawing, DrawSizes
from .drawn_states import DrawnStates, StatesPart
from .following_head import FollowingHead
from .forward import Forward
from .grid import Grid
from .guessing import Guessing
from .head_proposer import HeadProposer
from .inputs import Inputs, to_host
from .model_proposer import Draft, ModelProposer
from .pools import Pools
from .proposer import DeviceProposer
from .readback import Readback
from .row_inputs import RowInputs
from .runtime import Runtime
from .sequences import Sequences
from .step import LaunchedStep, Step
from .step_sizes import Ladder


@dataclass(frozen=True, slots=True)
class Sizes:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    """Tokens."""
    max_drafts: int = 0
    """Guesses of a row."""


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
        self._sequences = Sequences(
            runtime, num_slots, sizes.max_num_seqs, num_blocks=max_blocks, block_size=pool.block_size
        )
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
        inputs = Inputs(runtime, max_tokens)
        self._readback = Readback(runtime, self._drawing.tokens)
        self._head = None if head is None else self._follow_with(head, max_blocks)
        forward = Forward(model, self._attention, self._sequences, inputs, self._drawing, self._head)
        proposer = self._make_proposer(draft) if draws else None
        self._captured = CapturedSteps(runtime, forward, inputs, proposer, sizes.max_model_len)
        self._guessing = Guessing(runtime, inputs, self._drawing, self._captured, proposer)
        self._computing = Computing(
            runtime,
            model,
            RowInputs(self._sequences, self._drawing),
            inputs,
            forward,
            self._captured,
            self._drawing,
            self._guessing,
            self._head,
        )
        self._num_steps = 0
        self._has_aside = False
        self._undrawn: LaunchedStep | None = None
        """The last step, where its masks may not have been asked for."""

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
    def launch(self, plan: Plan) -> LaunchedStep:
        self._draw_last()
        if self._has_aside:
            self._runtime.join_aside()
            self._has_aside = False
        self._num_steps += 1
        parity = self._num_steps % 2
        if plan.copies:
            self._copy(plan.copies)
        is_single = [self._is_single(row) for row in plan.rows]
        chunks = [without_guesses(row) for row, single in zip(plan.rows, is_single, strict=True) if not single]
        singles = [row for row, single in zip(plan.rows, is_single, strict=True) if single]
        grid = self._guessing.grid(singles, chunks)
        rest_draws = [draw for row in chunks for draw in row.draws]
        rest_draws += [draw for part in plan.shipped for draw in part.draws]
        compute = self._computing.begin(parity, grid, chunks, rest_draws)
        step = LaunchedStep(plan, partial(self._draw, plan, parity, is_single, grid, chunks, rest_draws, compute))
        if plan.waits_for_tokens:
            self._undrawn = step
        else:
            step.draw()
        return step

    def _copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """(source block, destination block)."""
        if self._head is not None:
            self._head.copy(pairs)
        self._pools.blocks.copy(pairs)

    def _draw_last(self) -> None:
        """What is told from now on comes after all of the last step. Raises RuntimeError where that cannot be drawn,
        which is nobody's fault who tells."""
        undrawn, self._undrawn = self._undrawn, None
        if undrawn is not None:
            try:
                undrawn.draw()
            except ValueError as error:
                raise RuntimeError(f"step {undrawn.plan.step_id} could not be drawn") from error

    @torch.inference_mode()
    def _draw(
        self,
        plan: Plan,
        parity: int,
        is_single: Sequence[bool],
        grid: Grid,
        chunks: Sequence[Row],
        rest_draws: Sequence[Draw],
        compute: Callable[[], Computed],
    ) -> Step:
        """What is left of a step once its masks may be asked for."""
        computed = compute()
        wanted = [row for row in chunks if needs_logits(row)]
        logits = computed.logits
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
        tokens = self._readback.take(parity, grid.num_tokens + len(rest_draws))
        order, guesses = draw_order(plan, is_single, grid)
        return Step(
            self._runtime.mark(),
            tokens,
            order,
            guesses,
            None if computed.proposed is None else computed.proposed.tokens,
            grid.refused,
            partial(self._guessing.verified, [grid.rows[index] for index in grid.asking]),
            kept,
            logprobs,
            DrawnStates(states) if states else None,
            computed.facts,
            eager,
        )

    def _is_single(self, row: Row) -> bool:
        """One token in, and guesses, the next of the same sequence out, and kernels draw them."""
        if row.keep_logits or row.prompt_logprobs is not None or row.pooling or row.seq_id in self._drawing.eager:
            return False
        if len(row.token_ids) != 1 + row.num_drafts or len(row.draws) != len(row.token_ids):
            return False
        return [draw.seq_id for draw in row.draws].count(row.seq_id) == len(row.draws)

    @torch.inference_mode()
    def capture(self, ladder: Ladder) -> None:
        """Steps of these sizes are replayed from now on. Padding alone is computed meanwhile."""
        self._captured.capture(ladder)
        if self._head is not None:
            self._head.capture()

    # Blocks and logits, between this process's host memory and the device.

    @torch.inference_mode()
    def read_blocks(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        self._draw_last()
        if self._head is not None:
            self._head.before_reads()
        return self._pools.blocks.read(block_ids, out)

    @torch.inference_mode()
    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        self._draw_last()
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
        self._draw_last()
        self._head.before_reads()
        return self._head.cache.read(block_id)

    @torch.inference_mode()
    def write_hidden(self, block_id: int, payload: memoryview) -> None:
        """See plan.HeadedEngine."""
        assert self._head is not None, "peers with a head are refused where there is none"
        self._draw_last()
        self._head.before_writes()
        self._head.cache.write(block_id, payload)
        self._has_aside = True

    @torch.inference_mode()
    def lend_blocks(self, block_ids: Sequence[int]) -> None:
        """See plan.HeadedEngine."""
        if self._head is not None:
            self._draw_last()
            self._head.before_direct_writes()
            self._head.cache.forget(block_ids)
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
        self._draw_last()
        if self._head is not None:
            self._head.settle()
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
        self._draw_last()
        if self._head is not None:
            self._head.retire([self._sequences.slot(seq_id) for seq_id in seq_ids])
        for seq_id in seq_ids:
            self._drawing.retire(self._sequences.retire(seq_id), seq_id)
            self._guessing.retire(seq_id)
        if self._head is not None and not self._sequences.num_admitted:
            self._head.settle()
