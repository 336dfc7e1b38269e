"""What every transport does: move the blocks of a transfer from one worker's pool into another's.

    register(transfer) on the receiver      send(piece) on the sender, in order, the last one marked
    poll() on both: exactly one Done or Failed per transfer, sooner or later, whatever happens

Ownership: the receiver's blocks MUST stay allocated from `register` until its Done or Failed, or until `abandon`
returns; the sender's blocks MUST NOT change until its Done or Failed, or until `abandon` returns. After `abandon(id)`
nothing is stored or read for the transfer and poll says no more of it. A piece of a transfer that is not registered is
dropped. Neither end blocks, except in `close`.

A receiver is not told of a sender that stops in the middle, unless its transport notices: `LeasedReceiver` puts an end
to the wait.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

Store = Callable[[int, int, memoryview], None]
"""(first block, number of blocks, payload): puts a piece where it belongs. The payload is read-only, and valid during
the call alone. Raises ValueError if it does not fit."""

Read = Callable[[int, int, memoryview | None], memoryview]
"""(first block, number of blocks, out): the bytes of these blocks, in `out` if one is given, which has that size."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole blocks of a transfer, and with the last one the tail tensors."""

    first_block: int
    """Index within the blocks of the transfer, not a pool id."""
    num_blocks: int
    bytes_per_block: int
    read: Read
    """Called when there is room for the bytes, maybe for a part of the blocks at a time."""
    last: bool = False
    tail: Mapping[str, memoryview] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block + self.num_tail_bytes

    @property
    def num_tail_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tail.values())


@dataclass(frozen=True, slots=True)
class Done:
    """On the receiver: every piece is stored. On the sender: its blocks are needed no more."""

    transfer_id: str
    num_bytes: int
    tail: Mapping[str, memoryview] = field(default_factory=dict)
    """The receiver's copy of the tail tensors, read-only."""


@dataclass(frozen=True, slots=True)
class Failed:
    transfer_id: str
    error: str
    unreachable: bool = False
    """On the sender: there is no way to this endpoint at all, so another transport may be tried."""


class Receiver(Protocol):
    @property
    def endpoint(self) -> str:
        """Where senders reach it: `scheme:…`."""

    def register(self, transfer_id: str, num_blocks: int, store: Store) -> None:
        """Lets a transfer in. `store` is called by `poll`, on its thread."""

    def abandon(self, transfer_id: str) -> None:
        """Known or not."""

    def poll(self) -> list[Done | Failed]: ...

    def close(self) -> None: ...


class Sender(Protocol):
    @property
    def idle(self) -> bool:
        """Nothing is on its way: poll need not be called."""

    def send(self, transfer_id: str, endpoint: str, piece: Piece) -> None:
        """Queues a piece; never blocks."""

    def abandon(self, transfer_id: str) -> None:
        """Known or not."""

    def poll(self) -> list[Done | Failed]: ...

    def close(self) -> None: ...
