"""What a step cannot be faster than on a card: DESIGN's floor, from ceilings measured in the same run."""

from dataclasses import dataclass

from ..engine.config import ModelConfig
from .kernels import Ceilings

NUM_BYTES = 2
"""Of a weight and of a KV element."""


@dataclass(frozen=True, slots=True)
class Floor:
    config: ModelConfig
    ceilings: Ceilings

    @property
    def head_weights(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        c = self.config
        return c.num_layers * 2 * c.num_kv_heads * c.head_dim * NUM_BYTES

    def decode_s(self, batch: int, context: float) -> float:
        weights = self.config.num_linear_weights + self.head_weights
        read = NUM_BYTES * weights / self.ceilings.read_bytes_per_s
        multiply = 2 * weights * batch / self.ceilings.flops_per_s
        return max(read, multiply) + batch * context * self.kv_bytes_per_token / self.ceilings.read_bytes_per_s

    def prefill_s(self, num_tokens: int) -> float:
        """Linear layers and causal attention; the head reads one position."""
        c = self.config
        attention = 4 * c.num_layers * c.num_heads * c.head_dim * num_tokens * num_tokens / 2
        flops = 2 * self.config.num_linear_weights * num_tokens + attention
        return flops / self.ceilings.flops_per_s
