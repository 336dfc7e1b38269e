"""Guesses made on the device, turn by turn, and left where the step that verifies them reads its tokens: the host need
not know them in between.

A guess is drawn as a token is, with its sequence's noise, temperature and truncation, and on the first turn with its
mask and history too; what that leaves in the sampling tables is taken back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..guesses import Guesses
from ..plan import Row
from .inputs import TokenInputs
from .sampler import DeviceSampler


class DeviceProposer:
    def __init__(self, sampler: DeviceSampler, max_rows: int, device: torch.device) -> None:
        self._sampler = sampler
        self._drawn = torch.zeros(max_rows, dtype=torch.int32, device=device)

    # Before a step.

    def ready(self, rows: Sequence[Row]) -> set[int]:
        """Sequences that it can guess for now."""
        return {row.seq_id for row in rows}

    def upload(self, parity: int, rows: Sequence[Row]) -> None:
        """What it takes of the rows of a step beside their tokens."""

    # Within a step, captured or not.

    def propose(self, inputs: TokenInputs, stride: int, num_turns: int) -> None:
        """Fills in the tokens of all turns after the first."""
        saved = self._sampler.save()
        guessed: list[tuple[Tensor, Tensor]] = []
        for turn in range(num_turns - 1):
            here, there = (slice(t * stride, (t + 1) * stride) for t in (turn, turn + 1))
            slots, drawn = inputs.rows[there], self._drawn[:stride]
            logits = self.logits(inputs, here, slots, is_first=turn == 0)
            self._sampler.guess(logits, slots, inputs.draw_positions[here], drawn, is_first=turn == 0)
            tokens = inputs.token_ids[there]
            tokens.copy_(torch.where(slots >= 0, drawn.clamp(min=0), tokens))
            guessed.append((slots, tokens))
        self._sampler.restore(saved, guessed)

    def logits(self, inputs: TokenInputs, here: slice, rows: Tensor, *, is_first: bool) -> Tensor:
        """Of what follows the tokens of one turn, fp32 [stride, vocab_size], of the rows that want a guess after it;
        −1 in `rows` [stride] of others. The first turn tells the device of new blocks."""
        raise NotImplementedError

    # After a step.

    def verified(self, rows: Sequence[Row], guesses: Sequence[Guesses]) -> None:
        """These were the guesses of these rows."""

    def retire(self, seq_id: int) -> None:
        """A sequence has ended."""
