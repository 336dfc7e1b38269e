"""What a decode scheduler wants done, beyond its plan: plain data, carried out by the worker loop in this order."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..engine.plan import SequenceSeed
from ..wire.messages import FromWorker


@dataclass(frozen=True, slots=True)
class Receive:
    """Let the KV of one transfer in: block i of the transfer goes to `block_ids[i]`."""

    transfer_id: str
    block_ids: Sequence[int]


@dataclass(slots=True)
class Effects:
    retire: list[int] = field(default_factory=list)
    """seq_ids whose sampling state ends."""
    admit: list[SequenceSeed] = field(default_factory=list)
    receive: list[Receive] = field(default_factory=list)
    abandon: list[str] = field(default_factory=list)
    """transfer_ids whose bytes, should they still come, must not be stored."""
    messages: list[FromWorker] = field(default_factory=list)
    """To the router, in order."""
