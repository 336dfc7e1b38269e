"""Guesses by an EAGLE head: each is drawn as the target's tokens are, and its feature goes back into the head."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..draft import Draft, draw_guesses
from ..guesses import Guesses
from ..plan import Row
from ..sampler import GuessingSampler
from .follower import HeadFollower


class EagleProposer:
    """`Proposer` of the CPU's engine. KV of guesses is stored anew by `HeadFollower.follow`, as far as they were
    right."""

    def __init__(self, follower: HeadFollower, sampler: GuessingSampler) -> None:
        self._follower, self._sampler = follower, sampler

    def propose(self, rows: Sequence[Row]) -> list[Guesses]:
        """See guesses.Proposer. Where the hidden state before a row is gone, there are no guesses; the step that
        computes the row brings it back."""
        self._follower.catch_up(row.seq_id for row in rows)
        known = {row.seq_id: self._follower.cache.hidden_at(row.start - 1, row.block_table) for row in rows}
        hidden = {seq_id: one for seq_id, one in known.items() if one is not None}
        drafts = [Draft(row) for row in rows]
        ready = [draft for draft in drafts if draft.row.seq_id in hidden]
        draw_guesses(ready, self._sampler, lambda asked: self._logits(asked, hidden))
        return [draft.guesses for draft in drafts]

    def retire(self, seq_id: int) -> None:
        """Nothing is kept by sequence."""

    def _logits(self, drafts: Sequence[Draft], hidden: dict[int, Tensor]) -> Tensor:
        """Of what follows each draft's next token. `hidden`: by seq_id, [hidden] before that token, then of it."""
        rows = [draft.next_row for draft in drafts]
        out = self._follower.forward(rows, torch.stack([hidden[row.seq_id] for row in rows]))
        hidden.update(zip((row.seq_id for row in rows), out, strict=True))
        return self._follower.head.logits(out)
