"""How likely tokens were, on the way from the device: asked for when a step is launched, read when it is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...kernels.top_logprobs import TopLogprobs, top_logprobs
from ...wire.logprobs import TokenLogprobs
from ..token_logprobs import prompt_logprobs, read_logprobs
from .runtime import Runtime


@dataclass(frozen=True, slots=True)
class DrawnLogprobs:
    """Of some of a step's draws."""

    places: Sequence[int]
    """Of these draws, among all in the order they were made."""
    num_top: Sequence[int]
    measured: TopLogprobs
    """On the host, once the step is done."""

    @classmethod
    def launch(
        cls, runtime: Runtime, logits: Tensor, tokens: Tensor, places: Sequence[int], num_top: Sequence[int]
    ) -> "DrawnLogprobs":
        """fp32 logits [N, V] of the draws at `places`, and the tokens of these draws, int32 [N]."""
        most = min(max(num_top), logits.shape[1])
        return cls(places, num_top, to_host(runtime, top_logprobs(logits, tokens, most)))

    def by_place(self) -> dict[int, TokenLogprobs]:
        return dict(zip(self.places, read_logprobs(self.measured, self.num_top), strict=True))


@dataclass(frozen=True, slots=True)
class PromptScore:
    """Of the known tokens that follow the positions of a row."""

    seq_id: int
    num_top: int
    pieces: Sequence[TopLogprobs]
    """On the host, once the step is done."""

    @classmethod
    def launch(
        cls,
        runtime: Runtime,
        head: Callable[[Tensor], Tensor],
        hidden: Tensor,
        targets: Tensor,
        seq_id: int,
        num_top: int,
    ) -> "PromptScore":
        """Hidden states before the head [N, hidden_size], and the token after each position [N]."""
        pieces = [to_host(runtime, piece) for piece in prompt_logprobs(head, hidden, targets, num_top)]
        return cls(seq_id, num_top, pieces)

    def read(self) -> list[TokenLogprobs]:
        return [one for piece in self.pieces for one in read_logprobs(piece, [self.num_top] * len(piece.logprobs))]


def to_host(runtime: Runtime, measured: TopLogprobs) -> TopLogprobs:
    """A copy that is complete when compute has come so far."""

    def copied(tensor: Tensor) -> Tensor:
        return runtime.pinned(*tensor.shape, dtype=tensor.dtype).copy_(tensor, non_blocking=True)

    columns = (measured.logprobs, measured.ranks, measured.top_ids, measured.top_logprobs)
    return TopLogprobs(*(copied(column) for column in columns))
