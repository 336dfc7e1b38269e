"""What a step tells of prompts besides the tokens drawn after them, on its way from the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ...wire.logprobs import TokenLogprobs
from ..models.llama import Llama
from ..plan import Row
from ..pooled_rows import pool_rows
from .inputs import to_device, to_host
from .logprobs import PromptScore
from .runtime import Runtime


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """Of the rows of one step."""

    scores: Sequence[PromptScore] = ()
    vectors: Mapping[int, Tensor] = field(default_factory=dict)
    """What rows add to the vectors of their prompts, by seq_id: fp32 [hidden_size], on the host once the step is
    done."""

    @classmethod
    def launch(cls, runtime: Runtime, model: Llama, rows: Sequence[Row], hidden: Tensor) -> "PromptFacts":
        """Hidden states before the head, [N, hidden_size]: row after row of the positions that are scored, then of
        those that are pooled."""
        num_scored = sum(row.num_scored for row in rows)
        scores = _scores(runtime, model, rows, hidden[:num_scored])
        vectors = pool_rows(rows, hidden[num_scored:], model.norm)
        return cls(scores, {seq_id: to_host(runtime, vector) for seq_id, vector in vectors.items()})

    def logprobs(self) -> dict[int, list[TokenLogprobs]]:
        """As `Result.prompt_logprobs`, once the step is done."""
        return {score.seq_id: score.read() for score in self.scores}

    def pooled(self) -> dict[int, np.ndarray]:
        """As `Result.pooled`, once the step is done."""
        return {seq_id: vector.numpy() for seq_id, vector in self.vectors.items()}


NO_FACTS = PromptFacts()


def _scores(runtime: Runtime, model: Llama, rows: Sequence[Row], hidden: Tensor) -> list[PromptScore]:
    scores = []
    for row in rows:
        if row.prompt_logprobs is not None:
            own, hidden = hidden[: row.num_scored], hidden[row.num_scored :]
            targets = to_device(runtime, np.array(row.prompt_logprobs.targets, np.int32))
            num_top = row.prompt_logprobs.num_top
            scores.append(PromptScore.launch(runtime, model.head, own, targets, row.seq_id, num_top))
    return scores
