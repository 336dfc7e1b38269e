"""What a worker is told about speculation: who guesses tokens ahead of the model, and how many."""

from dataclasses import dataclass
from typing import Literal

Method = Literal["off", "ngram", "first-layers", "draft", "eagle"]
"""Who guesses: nobody; what followed the same tokens before, in prompt or output; the model's own first layers; a
smaller model with the same tokenizer; a head trained for the model."""


@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    method: Method = "off"
    num_tokens: int = 4
    """Guessed at once for a sequence, at most: fewer where guesses turn out wrong."""
    model: str | None = None
    """Of draft and eagle: the smaller model or the head."""
    num_layers: int | None = None
    """Of first-layers; None: not decided yet."""
