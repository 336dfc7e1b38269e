"""Draws of sequences whose samplers no kernel here runs: by the sampler of the CPU's engine, on the device.

`launch` waits for the logits of their steps, and for them alone. What is drawn is known at once.
"""

from collections.abc import Sequence

from torch import Tensor

from ...wire.logprobs import TokenLogprobs
from ..plan import Draw, SequenceSeed
from ..sampler import Sampler

Drawn = tuple[int, TokenLogprobs | None, bytes]
"""(token, its logprobs, state after it)"""


class EagerDraws:
    def __init__(self, sampler: Sampler | None) -> None:
        """Without a sampler, such sequences are refused."""
        self._sampler = sampler
        self._last: dict[int, int] = {}

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._last

    def admit(self, seed: SequenceSeed) -> None:
        """Raises ValueError, as the sampler does."""
        if self._sampler is None:
            raise ValueError("these samplers cannot be combined here")
        self._sampler.admit(seed)
        self._last[seed.seq_id] = seed.output_ids[-1] if seed.output_ids else -1

    def retire(self, seq_id: int) -> None:
        assert self._sampler is not None
        del self._last[seq_id]
        self._sampler.retire(seq_id)

    def last(self, seq_id: int) -> int:
        """The token drawn last."""
        return self._last[seq_id]

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
        """fp32 [N, V], a row for each draw, which may be overwritten."""
        assert self._sampler is not None
        samples = self._sampler.sample(logits, draws)
        tokens = samples.token_ids.tolist()
        self._last.update(zip((draw.seq_id for draw in draws), tokens, strict=True))
        return list(zip(tokens, samples.logprobs, samples.states, strict=True))
