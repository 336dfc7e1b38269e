"""What a prefill scheduler wants done, beyond its plan: plain data, carried out by the worker loop."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..wire.messages import FromWorker


@dataclass(frozen=True, slots=True)
class Send:
    """Ship finished blocks. They are kept until the transport says Done or Failed for the transfer."""

    transfer_id: str
    data_endpoint: str
    first_block: int
    """Index of `block_ids[0]` within the blocks of the transfer."""
    block_ids: Sequence[int]
    last: bool
    logits: Any = None
    """With the last piece: fp32 [vocab] of the prompt's last position."""
    prompt_logprobs: bytes = b""
    """With the last piece, where the prompt asks: of all its tokens but the first, packed."""


@dataclass(slots=True)
class Effects:
    send: list[Send] = field(default_factory=list)
    abandon: list[str] = field(default_factory=list)
    """transfer_ids of which nothing more will be sent."""
    messages: list[FromWorker] = field(default_factory=list)
