"""The device's part of a step, from the tokens that it is told to those that it draws: what graphs repeat, and what is
launched kernel by kernel where there is none."""

import torch
from torch import Tensor

from ...kernels.begin_step import begin_step
from ..models.llama import Llama
from ..streams import NO_STREAMS, Streams
from .attention import AttentionState, Chunks, StepAttention
from .drawing import Drawing
from .following_head import Followed, FollowingHead
from .inputs import Inputs, TokenInputs
from .sequences import Sequences
from .step_sizes import StepSize


class Forward:
    """Each call is of a step of some size, whose tokens are in `Inputs.of`: `hidden`, `logits` of all or of some,
    `follow` and `draw`, in this order."""

    def __init__(
        self,
        model: Llama,
        attention: AttentionState,
        sequences: Sequences,
        inputs: Inputs,
        drawing: Drawing,
        head: FollowingHead | None,
    ) -> None:
        """`head` follows the model."""
        self.model, self._attention, self._sequences = model, attention, sequences
        self._inputs, self._drawing, self._head = inputs, drawing, head
        self._no_logits = torch.zeros(0, model.config.vocab_size, device=attention.cos_sin.device)

    def hidden(self, size: StepSize, chunks: Chunks | None, wanted: Tensor | None) -> tuple[Tensor, Streams]:
        """Stores the KV of all tokens. Hidden states before the head, [N, hidden_size], of those `wanted`, int [N], or
        of all; and what `follow` takes."""
        inputs, num_grid = self._inputs.of(size.num_tokens), size.num_decode_tokens
        num_turns = 1 + size.num_drafts
        attention = StepAttention.of(self._attention, inputs.rows, inputs.positions, num_grid, chunks, num_turns)
        attention.begin()
        streams = NO_STREAMS if self._head is None else self._head.streams(inputs, _num_lagging(size))
        return self.model.hidden(self._embed(inputs), wanted, attention, streams), streams

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [N, vocab_size], of [N, hidden_size]."""
        return self.model.head(hidden) if len(hidden) else self._no_logits

    def follow(self, size: StepSize, streams: Streams) -> Followed | None:
        """By the head, where there is one."""
        if self._head is None:
            return None
        inputs = self._inputs.of(size.num_tokens)
        return self._head.follow(inputs, streams, size.num_decode_tokens, size.num_single, _num_lagging(size))

    def draw(self, size: StepSize, logits: Tensor, followed: Followed | None) -> None:
        """For the grid, whose `logits` are the first of these."""
        inputs = self._inputs.of(size.num_tokens)
        left = None if followed is None else followed.left
        turns = self._drawing.draw_grid(logits, inputs, size.num_single, 1 + size.num_drafts, left)
        if self._head is not None and followed is not None:
            self._head.keep(followed, turns, _num_lagging(size))

    def _embed(self, inputs: TokenInputs) -> Tensor:
        return begin_step(
            inputs.token_ids,
            inputs.rows,
            inputs.new_indices,
            inputs.new_blocks,
            self._drawing.last_tokens,
            self._sequences.block_tables,
            self.model.embedding,
        )


def _num_lagging(size: StepSize) -> int:
    """Tokens, from the first, that the head leaves for later: see FollowingHead."""
    return 0 if size.num_drafts else size.num_decode_tokens
