"""An EAGLE head beside an engine's model: what each step gives it, and when it follows.

Tokens that come without guesses are left for later; chunks of prompts, and rows of steps with guesses, are followed in
the step that computes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.begin_step import begin_step
from ...kernels.stash_rows import Stash
from ..eagle.cache import FIRST_SLOT
from ..eagle.head import EagleHead
from ..models.llama import Llama
from ..plan import Row
from ..streams import Streams
from .attention import AttentionState
from .backlog import Backlog
from .catch_up import CatchUp
from .follower import DeviceFollower
from .head_cache import HeadCache
from .inputs import TokenInputs
from .pool import CudaKvPool
from .runtime import Runtime
from .sequences import Sequences


@dataclass(frozen=True, slots=True)
class Followed:
    """Tokens that the head has followed in their step, before they are drawn."""

    inputs: TokenInputs
    hidden: Tensor
    left: Stash | None
    """Of the others."""


class FollowingHead:
    def __init__(
        self,
        head: EagleHead,
        model: Llama,
        pool: CudaKvPool,
        sequences: Sequences,
        runtime: Runtime,
        last_tokens: Tensor,
        *,
        max_num_seqs: int,
        max_positions: int,
        pdl: bool,
    ) -> None:
        """`pool` is the head's; `last_tokens` int32: those of slots, if there are any."""
        self._sequences, self._runtime, self._last_tokens = sequences, runtime, last_tokens
        device, tables = runtime.device, sequences.block_tables
        cos_sin = head.rope.table(max_positions).to(device)
        attention = AttentionState(
            head.layer_config, pool, cos_sin, tables, max_num_seqs, pdl=pdl, first_position=FIRST_SLOT
        )
        self.cache = HeadCache(
            runtime,
            tables,
            num_blocks=pool.num_blocks,
            block_size=pool.block_size,
            hidden_size=head.layer_config.hidden_size,
            dtype=head.dtype,
        )
        backlog = Backlog(runtime, sequences.num_slots, head.config.feature_size, model.dtype)
        self.follower = DeviceFollower(head, attention, self.cache, backlog, model.config.num_layers)
        self._catch_up = CatchUp(self.follower, runtime, sequences.num_slots)
        self._has_ended = False
        """Some sequence, whose blocks may be written aside, for another, before it has been caught up with."""

    def capture(self) -> None:
        """Catching up is replayed from now on."""
        self._catch_up.capture()

    # Before a step.

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """(source block, destination block), before the pools copy them."""
        self._catch_up.all()
        self.cache.copy(pairs)

    def begin(self, slots: np.ndarray, chunks: Sequence[Row], *, has_guesses: bool) -> None:
        """`slots`, int [N], of the rows that are drawn for: without guesses they lag. All others are followed at once,
        for which their sequences must not lag, nor any that has ended, or whose blocks they go on from."""
        if self._sequences.taken:
            self._catch_up.give(self._sequences.taken)
        if chunks or self._sequences.first_rows:
            self._follow_who_is_read(chunks)
        if has_guesses:
            self._catch_up.now(slots)
        else:
            self._catch_up.later(slots)

    def _follow_who_is_read(self, chunks: Sequence[Row]) -> None:
        lagging = self._lagging(chunks)
        if chunks or lagging:
            self._catch_up.now(sorted(lagging))

    def _lagging(self, chunks: Sequence[Row]) -> set[int]:
        """Slots whose sequences are not to lag behind what others, or they themselves, go on from in a step with these,
        which may be the first row of one that is drawn for, too."""
        sequences = self._sequences
        slots = {sequences.slot(row.seq_id) for row in chunks if row.seq_id in sequences}
        for row in chunks:
            slots.update(sequences.reading_from(row))
        for row in sequences.first_rows:
            slots.update(slot for slot in sequences.reading_from(row) if slot != sequences.slot(row.seq_id))
        return slots

    # Within a step, captured or not.

    def streams(self, inputs: TokenInputs, num_lagging: int) -> Streams:
        """To leave the step's first tokens for later, and to catch what `follow` takes of the others."""
        return self.follower.streams(inputs, num_lagging, self._last_tokens)

    def follow(self, inputs: TokenInputs, streams: Streams, num_single: int, stride: int, num_lagging: int) -> Followed:
        """After the model and its head. `num_single`: tokens of rows that are drawn for, in turns of `stride`."""
        left = streams.leave()
        inputs, num_single = inputs.after(num_lagging), num_single - num_lagging
        if not len(inputs.rows):
            return Followed(inputs, torch.empty(0), left)
        embedded = begin_step(
            inputs.token_ids,
            inputs.rows,
            inputs.new_indices,
            inputs.new_blocks,
            self._last_tokens,
            self._sequences.block_tables,
            self.follower.head.embedding,
        )
        return Followed(inputs, self.follower.follow(inputs, embedded, streams.features, num_single, stride), left)

    def keep(self, followed: Followed, turns: Sequence[Tensor], num_lagging: int) -> None:
        """Once the step's tokens are drawn; `turns`: see DeviceFollower."""
        if len(followed.inputs.rows):
            self.follower.keep(followed.inputs, followed.hidden, () if num_lagging else turns)

    # Between steps.

    def retire(self, slots: Sequence[int]) -> None:
        """Their sequences end, and their blocks may be found by others. `settle` must come before their slots are
        taken, or now if no step will; a step that is told one of their blocks settles them itself."""
        for slot in slots:
            self._catch_up.end(slot, self._sequences.blocks(slot))
        self._has_ended = True

    def settle(self) -> None:
        """Nothing is left to follow of who has ended."""
        self._catch_up.settle()

    def before_reads(self) -> None:
        """Of blocks, aside."""
        if self._catch_up.all():
            self._runtime.hold_aside()

    def before_writes(self) -> None:
        """Of blocks, aside."""
        self.settle()
        if self._has_ended:
            self._runtime.hold_aside()
            self._has_ended = False

    def before_direct_writes(self) -> None:
        """Of blocks, by a peer: waits for what may still write those of sequences that have ended."""
        self.settle()
        if self._has_ended:
            self._runtime.mark()()
            self._has_ended = False
