"""What an engine asks of a sampler: tokens from logits, with the state of every sequence that is drawn for."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..wire.logprobs import TokenLogprobs
from .plan import Draw, SequenceSeed


class Samples(Protocol):
    """What came of some draws, in their order."""

    @property
    def token_ids(self) -> Tensor:
        """int64 [N]"""

    @property
    def logprobs(self) -> Sequence[TokenLogprobs | None]:
        """As `Result.logprobs`."""

    @property
    def states(self) -> Sequence[bytes]:
        """As `Result.states`."""


class Sampler(Protocol):
    """Draws tokens; keeps what that needs for each admitted sequence."""

    def admit(self, seed: SequenceSeed) -> None: ...

    def retire(self, seq_id: int) -> None: ...

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Samples:
        """fp32 [N, vocab_size], a row for each draw, of sequences that differ or have no more than one draw here. The
        logits may be overwritten."""


class GuessingSampler(Sampler, Protocol):
    """Draws for a model that guesses, too."""

    def guess(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        """What `sample` would draw from a proposer's logits. It counts as drawn until `forget`."""

    def forget(self, seq_id: int, count: int) -> None:
        """The last guesses have not come."""
