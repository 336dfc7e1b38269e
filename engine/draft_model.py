"""Guesses by a model: a smaller one with the same tokenizer, or the first layers of the one that is guessed for.

Guesses are drawn as the target's tokens are, with the same noise, samplers and masks, so where both models agree on a
distribution they mostly agree on the token too. First layers read and write the target's own KV, which is right
whatever was accepted. Another model has a pool of its own beside the target's, with the same block ids; what it lacks
(a prompt that came from elsewhere, tokens that were drawn without guesses) it computes when it is next asked.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import PagedAttention
from .draft import Draft, draw_guesses
from .draft_progress import DraftProgress
from .guesses import Guesses
from .kv_pool import KvPool
from .models.llama import Llama
from .plan import Row
from .sampler import GuessingSampler


class DraftModel:
    """`Proposer` of the CPU's engine."""

    def __init__(self, model: Llama, pool: KvPool, sampler: GuessingSampler, *, shares_kv: bool) -> None:
        """`shares_kv`: `pool` is the target's, and so are the layers."""
        self._model, self._pool, self._sampler = model, pool, sampler
        self._progress = None if shares_kv else DraftProgress(pool.num_blocks, pool.block_size)

    def propose(self, rows: Sequence[Row]) -> list[Guesses]:
        """See guesses.Proposer."""
        drafts = [Draft(row) for row in rows]
        ready = drafts if self._progress is None else self._catch_up(drafts, self._progress)
        draw_guesses(ready, self._sampler, lambda asked: self._compute([draft.next_row for draft in asked]))
        if self._progress is not None:
            for draft in drafts:
                self._progress.guessed(draft.row, draft.computed)
        return [draft.guesses for draft in drafts]

    def retire(self, seq_id: int) -> None:
        if self._progress is not None:
            self._progress.retire(seq_id)

    def _catch_up(self, drafts: Sequence[Draft], progress: DraftProgress) -> list[Draft]:
        """Computes what is lacking before each row; those for which nothing is any more."""
        missing = [row for row in (progress.missing(draft.row) for draft in drafts) if row is not None]
        if missing:
            self._compute(missing)
            for row in missing:
                progress.computed(row)
        return [draft for draft in drafts if progress.is_ready(draft.row)]

    def _compute(self, rows: Sequence[Row]) -> Tensor:
        """Stores the rows' KV; fp32 logits of each one's last position."""
        model = self._model
        config = model.config
        attention = PagedAttention(
            self._pool, rows, num_heads=config.num_heads, windows=config.windows, rope=model.rope
        )
        token_ids = torch.tensor([token for row in rows for token in row.token_ids])
        lengths = torch.tensor([len(row.token_ids) for row in rows])
        return model.forward_embedded(F.embedding(token_ids, model.embedding), lengths.cumsum(0) - 1, attention)
