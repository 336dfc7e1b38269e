"""The draws of a step: those of its grid, turn by turn, then those of its chunks and of shipped logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.keep_rows import keep_rows
from ...kernels.sparse_edits import apply_edits
from ...kernels.stash_rows import Stash
from ...text.phrases import Phrases
from ..plan import Draw, Plan, Row, SequenceSeed
from ..sampler import Sampler
from .drawn_states import StatesPart
from .eager_draws import Drawn, EagerDraws
from .grid import Grid
from .inputs import EditInputs, TokenInputs, edits_to_device, to_device, to_host
from .logprobs import DrawnLogprobs
from .runtime import Runtime
from .sampler import DeviceSampler, can_draw, state_size
from .sequences import Sequences

KEPT_OF_GUESSES = 64
"""Logits kept for logprobs where rows have guesses, at least; more are asked for without guesses."""


@dataclass(frozen=True, slots=True)
class DrawSizes:
    num_slots: int
    """0: nothing is drawn, which takes no sampling state."""
    max_drafts: int
    vocab_size: int
    max_model_len: int

    @property
    def num_draws(self) -> int:
        """Of a grid, at most."""
        return max(1, self.num_slots * (1 + self.max_drafts))


class Drawing:
    def __init__(
        self,
        runtime: Runtime,
        sequences: Sequences,
        sizes: DrawSizes,
        *,
        phrases: Phrases | None,
        sampler: Sampler | None,
    ) -> None:
        """`phrases`: see `DeviceSampler`. `sampler`, on this device, draws where the kernels do not (`can_draw`)."""
        self._runtime, self._sequences = runtime, sequences
        device, num_slots, num_draws = runtime.device, sizes.num_slots, sizes.num_draws
        length, max_drafts = sizes.max_model_len, sizes.max_drafts
        self.sampler = (
            DeviceSampler(num_slots, sizes.vocab_size, length, device, phrases, max_drafts) if num_slots else None
        )
        self.eager = EagerDraws(sampler)
        self.tokens = torch.zeros(2 * num_draws, dtype=torch.int32, device=device)
        """Drawn: those of the grid, then the others."""
        self.num_kept = max(num_slots, min(num_draws, KEPT_OF_GUESSES)) if num_slots else 0
        """Draws of a grid that logprobs can be told of."""
        self._kept_logits = torch.empty(self.num_kept, sizes.vocab_size, device=device)
        """Of those: sampling overwrites logits."""
        self._no_logits = torch.zeros(0, sizes.vocab_size, device=device)
        self._no_tokens = torch.zeros(1, dtype=torch.int32, device=device)
        self._edits = EditInputs(runtime, num_draws if num_slots else 0)
        self._states = torch.zeros(num_draws, 2, device=device)
        """After each draw of a grid, where a sequence has a state beside its tokens."""
        self._num_logprobs: dict[int, int] = {}
        """Of sequences that ask: likeliest tokens to name with each."""
        self._state_sizes: dict[int, int] = {}
        """Of sequences that have a state beside their tokens: fp32 numbers."""

    @property
    def last_tokens(self) -> Tensor:
        """int32, those of slots, if there are any."""
        return self._no_tokens if self.sampler is None else self.sampler.table.last_token

    # Sequences.

    def admit(self, slot: int, seed: SequenceSeed) -> None:
        """Raises ValueError where the request names what is not in the vocabulary, or cannot be done."""
        assert self.sampler is not None
        if not can_draw(seed.params):
            self.eager.admit(seed)
            return
        self.sampler.set(slot, seed)
        if seed.params.logprobs is not None:
            self._num_logprobs[seed.seq_id] = seed.params.logprobs
        if size := state_size(seed.params):
            self._state_sizes[seed.seq_id] = size

    def retire(self, slot: int, seq_id: int) -> None:
        assert self.sampler is not None
        self.sampler.clear(slot)
        self._num_logprobs.pop(seq_id, None)
        self._state_sizes.pop(seq_id, None)
        if seq_id in self.eager:
            self.eager.retire(seq_id)

    def tells_logprobs(self, seq_id: int) -> bool:
        return seq_id in self._num_logprobs

    # What the device is told.

    def prepare(self, grid: Grid, rest: Sequence[Draw]) -> None:
        """What draws bring along; masks are waited for."""
        if self.sampler is None:
            return
        first = [row.draws[0] for row in grid.rows] + [draw for draw in rest if draw.seq_id not in self.eager]
        self.sampler.prepare([self._sequences.slot(draw.seq_id) for draw in first], first)
        if not grid.guided:
            self.set_later_masks(grid, [row.draws[1:] for row in grid.rows])
        self._upload_edits(grid)

    def set_later_masks(self, grid: Grid, draws: Sequence[Sequence[Draw]]) -> None:
        """Those of each row's `draws` after its first."""
        if grid.num_turns > 1:
            assert self.sampler is not None
            self.sampler.set_later_masks([self._sequences.slot(row.seq_id) for row in grid.rows], draws)

    def _upload_edits(self, grid: Grid) -> None:
        assert self.sampler is not None
        edits = None
        if self.sampler.may_edit(draw for row in grid.rows for draw in row.draws):
            draws = grid.draws
            slots = [-1 if draw.seq_id < 0 else self._sequences.slot(draw.seq_id) for draw in draws]
            edits = self.sampler.edits(slots, draws)
        self._edits.upload(edits)

    # Draws.

    def draw_grid(
        self, logits: Tensor, inputs: TokenInputs, stride: int, num_turns: int, left: Stash | None = None
    ) -> list[Tensor]:
        """Turn by turn: a row is drawn for as long as its guesses are right, so that its state takes in no token that
        does not come. The slots of each turn, int32 [stride], −1 where that is so. `left`: of the grid, for a head."""
        num_tokens = stride * num_turns
        if not num_tokens:
            return []
        assert self.sampler is not None
        logits = logits[:num_tokens]
        keep_rows(logits, inputs.kept_places[:num_tokens], self._kept_logits, left)
        if num_turns > 1:
            apply_edits(logits, *self._edits.tensors)
        slots, turns = inputs.rows[:stride], []
        edits = self._edits.tensors if num_turns == 1 else None
        for turn in range(num_turns):
            part = slice(turn * stride, (turn + 1) * stride)
            drawn = self.tokens[part]
            turns.append(slots)
            self.sampler.sample(logits[part], slots, inputs.draw_positions[part], edits, drawn, turn)
            if num_turns > 1:
                self._states[part].copy_(self.sampler.states[:stride])
            if turn + 1 < num_turns:
                following = slice(part.stop, part.stop + stride)
                is_right = (slots >= 0) & (drawn == inputs.token_ids[following])
                slots = torch.where(is_right, inputs.rows[following], -1)
        return turns

    def draw_rest(
        self, plan: Plan, wanted: Sequence[Row], logits: Tensor, num_drawn: int
    ) -> tuple[Tensor, dict[int, Drawn]]:
        """The draws of chunks, then those from shipped logits, into the places of `tokens` after the first ones: the
        logits, before anything, of those whose sequences ask for logprobs; and what was drawn eagerly, by place."""
        draws = [draw for row in wanted for draw in row.draws]
        parts = []
        if draws:
            source = [index for index, row in enumerate(wanted) for _ in row.draws]
            parts.append(logits[to_device(self._runtime, np.array(source, np.int64))])
        for shipped in plan.shipped:
            draws += shipped.draws
            parts.append(shipped.logits.expand(len(shipped.draws), -1))
        if not draws:
            return self._no_logits, {}
        assert self.sampler is not None
        joined, out = torch.cat(parts), self.tokens[num_drawn : num_drawn + len(draws)]
        asking = self._rows(joined, [place for place, draw in enumerate(draws) if self.tells_logprobs(draw.seq_id)])
        apart = [place for place, draw in enumerate(draws) if draw.seq_id in self.eager]
        own = self._rows(joined, apart)
        slots, positions = [self._slot_to_draw(draw) for draw in draws], [draw.position for draw in draws]
        given = to_device(self._runtime, np.array((slots, positions), np.int32))
        edits = self.sampler.edits(slots, draws)
        sent = None if edits is None else edits_to_device(self._runtime, edits)
        self.sampler.sample(joined, given[0], given[1], sent, out)
        return asking, self._draw_eagerly(own, [(place + num_drawn, draws[place]) for place in apart])

    def _draw_eagerly(self, logits: Tensor, placed: Sequence[tuple[int, Draw]]) -> dict[int, Drawn]:
        if not placed:
            return {}
        drawn = self.eager.draw(logits, [draw for _, draw in placed])
        for (place, _), (token, _, _) in zip(placed, drawn, strict=True):
            self.tokens[place : place + 1].fill_(token)
        return {place: one for (place, _), one in zip(placed, drawn, strict=True)}

    def _rows(self, logits: Tensor, places: Sequence[int]) -> Tensor:
        """A copy of these, before sampling overwrites them."""
        return logits[to_device(self._runtime, np.array(places, np.int64))] if places else self._no_logits

    def _slot_to_draw(self, draw: Draw) -> int:
        """−1 where the device does not draw."""
        return -1 if draw.seq_id in self.eager else self._sequences.slot(draw.seq_id)

    # What is told of them.

    @property
    def tells_more(self) -> bool:
        """Than tokens, of some sequence."""
        return bool(self._num_logprobs or self._state_sizes)

    def take_states(self, made: Sequence[tuple[int, Draw]], first_place: int, in_turns: bool) -> list[StatesPart]:
        """On their way to the host, where a sequence has one. `made`: draws, each with its place counted from the
        first; they were made in several turns, or by the last `sample`."""
        if self.sampler is None or not self._state_sizes:
            return []
        sizes = {place: self._state_sizes.get(draw.seq_id, 0) for place, draw in made}
        if not any(sizes.values()):
            return []
        states = self._states if in_turns else self.sampler.states
        return [StatesPart(first_place, sizes, to_host(self._runtime, states[: 1 + max(sizes)]))]

    def measure(self, placed: Sequence[tuple[int, Draw]], num_grid: int, rest: Tensor) -> DrawnLogprobs | None:
        """How likely the tokens were that were drawn for sequences that ask. `placed`: draws and where they lie in
        `tokens`; logits of the first `num_grid` places were kept, in this order, those of the others are `rest`."""
        asking = [(place, draw) for place, draw in placed if self.tells_logprobs(draw.seq_id)]
        if not asking:
            return None
        places = [place for place, _ in asking]
        num_kept = sum(place < num_grid for place in places)
        logits = torch.cat((self._kept_logits[:num_kept], rest))
        tokens = self.tokens[to_device(self._runtime, np.array(places, np.int64))]
        num_top = [self._num_logprobs[draw.seq_id] for _, draw in asking]
        return DrawnLogprobs.launch(self._runtime, logits, tokens, places, num_top)
