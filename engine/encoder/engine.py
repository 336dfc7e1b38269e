"""The engine of plan.py around an encoder: each row of a plan is a whole prompt, and gives its vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..plan import Plan, Result, Row, SequenceSeed
from ..pooling import pooled_positions
from .model import Encoder


@dataclass(frozen=True, slots=True)
class Pending:
    """The handle of a step: its vectors may still be on their way from the device."""

    plan: Plan
    vectors: dict[int, Tensor]

    def result(self) -> Result:
        return Result((), pooled={seq_id: vector.cpu().numpy() for seq_id, vector in self.vectors.items()})


class EncoderEngine:
    """It keeps no KV: blocks are only counted, and there is nothing to draw or to send."""

    overlaps = False
    bytes_per_block = 0

    def __init__(self, model: Encoder, num_blocks: int, block_size: int, separator_id: int | None) -> None:
        """`separator_id`: of the token after which, in a pair of texts, the second begins."""
        self._model, self._separator_id = model, separator_id
        self.num_blocks, self.block_size = num_blocks, block_size
        self.vocab_size = model.config.vocab_size

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Pending:
        assert all(row.start == 0 and row.pooling for row in plan.rows), (
            "an encoder computes whole prompts, for vectors"
        )
        if not plan.rows:
            return Pending(plan, {})
        types = [kind for row in plan.rows for kind in self._types(row)]
        hidden = self._model.forward([row.token_ids for row in plan.rows], types)
        vectors: dict[int, Tensor] = {}
        for row in plan.rows:
            own, hidden = hidden[: len(row.token_ids)], hidden[len(row.token_ids) :]
            vectors[row.seq_id] = self._pool(row, own)
        return Pending(plan, vectors)

    def _pool(self, row: Row, hidden: Tensor) -> Tensor:
        if row.pooling == "score":
            return self._model.scores(hidden[:1])[0].float()
        positions = pooled_positions(row)
        return hidden[positions.start : positions.stop].float().sum(0)

    def _types(self, row: Row) -> Sequence[int]:
        """Of a pair's second text 1, of all else 0."""
        ids = list(row.token_ids)
        if row.pooling != "score" or self._model.config.num_token_types < 2 or self._separator_id not in ids:
            return [0] * len(ids)
        num_first = ids.index(self._separator_id) + 1
        return [0] * num_first + [1] * (len(ids) - num_first)

    def admit(self, seed: SequenceSeed) -> NoReturn:
        raise AssertionError("an encoder draws no tokens")

    def retire(self, *seq_ids: int) -> NoReturn:
        raise AssertionError("an encoder draws no tokens")

    def read_blocks(self, block_ids: Sequence[int], out: memoryview | None = None) -> NoReturn:
        raise AssertionError("an encoder keeps no KV")

    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> NoReturn:
        raise AssertionError("an encoder keeps no KV")

    def pack_logits(self, logits: Any) -> NoReturn:
        raise AssertionError("an encoder has no logits")

    def unpack_logits(self, payload: memoryview) -> NoReturn:
        raise AssertionError("an encoder has no logits")
