"""What a step tells of prompts besides the tokens drawn after them, on its way from the device."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ...wire.logprobs import TokenLogprobs
from .logprobs import PromptScore


@dataclass(slots=True)
class PromptFacts:
    """Of the rows of one step."""

    scores: list[PromptScore] = field(default_factory=list)
    vectors: dict[int, Tensor] = field(default_factory=dict)
    """What rows add to the vectors of their prompts, by seq_id: fp32 [hidden_size], on the host once the step is
    done."""

    def logprobs(self) -> dict[int, list[TokenLogprobs]]:
        """As `Result.prompt_logprobs`, once the step is done."""
        return {score.seq_id: score.read() for score in self.scores}

    def pooled(self) -> dict[int, np.ndarray]:
        """As `Result.pooled`, once the step is done."""
        return {seq_id: vector.numpy() for seq_id, vector in self.vectors.items()}
