"""Guesses by an EAGLE head on the device: see engine/eagle/proposer.py."""

import torch
from torch import Tensor

from ...kernels.begin_step import begin_step
from .attention import StepAttention
from .follower import DeviceFollower
from .inputs import TokenInputs
from .proposer import DeviceProposer
from .sampler import DeviceSampler


class HeadProposer(DeviceProposer):
    """Where the hidden state before a row is gone, its guesses are made of zeros: they are wrong for once."""

    def __init__(self, follower: DeviceFollower, sampler: DeviceSampler, max_rows: int, device: torch.device) -> None:
        super().__init__(sampler, max_rows, device)
        self._follower = follower
        self._hidden = torch.empty(0, device=device)
        """Of the turn before."""

    def logits(self, inputs: TokenInputs, here: slice, rows: Tensor, *, is_first: bool) -> Tensor:
        """See DeviceProposer."""
        head, attention = self._follower.head, self._follower.attention
        embedded = begin_step(
            inputs.token_ids[here],
            rows,
            inputs.new_indices[here],
            inputs.new_blocks[here],
            self._sampler.table.last_token,
            attention.block_tables,
            head.embedding,
        )
        positions = inputs.positions[here]
        hidden = self._follower.cache.before(rows, positions) if is_first else self._hidden
        step = StepAttention.of(attention, rows, positions, len(rows))
        step.begin()
        self._hidden = head.forward(embedded, hidden, step)
        return head.logits(self._hidden)
