"""What every transport does: move the blocks of a transfer from one worker's pool into another's.

    register(transfer) on the receiver      prepare(transfer), if that is known before its first piece,
                                            send(piece) on the sender, in order, the last one marked
    poll() on both: exactly one Done or Failed per transfer, sooner or later, whatever happens

Ownership: the receiver's blocks MUST stay allocated from `register` until its Done or Failed, or until `abandon`
returns; the sender's blocks MUST be complete in memory when they are given, and MUST NOT change until its Done or
Failed, or until `abandon` returns. After `abandon(id)` nothing is stored or read for the transfer and poll says no more
of it. A piece of a transfer that is not registered is dropped. Neither end blocks, except in `close`, and in a sender's
`abandon` for as long as one piece that is being moved takes.

Quarantine: some transports write into the receiver's blocks with nobody of the receiver in between. Before the first
byte they call the transfer's `claim`; unless that gives False, the blocks of a transfer that then ends in Failed or
`abandon` MUST stay allocated until poll says Released, which it does once they cannot be written any more.

A receiver is not told of a sender that stops in the middle, unless its transport notices: `LeasedReceiver` puts an end
to the wait.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

Store = Callable[[int, int, memoryview], None]
"""(first block, number of blocks, payload): puts a piece where it belongs. The payload is read-only, and valid during
the call alone. Raises ValueError if it does not fit."""

Read = Callable[[int, int, memoryview | None], memoryview]
"""(first block, number of blocks, out): the bytes of these blocks, in `out` if one is given, which has that size."""


@dataclass(frozen=True, slots=True)
class PoolBlocks:
    """Where a transfer goes in the receiver's pool, for transports that write there by themselves."""

    block_ids: Sequence[int] = ()
    claim: Callable[[], bool] = lambda: True
    """Called before the first byte; False if the blocks are not this transfer's any more."""
    landed: Callable[[], object] = lambda: None
    """Called when a piece has come."""


NO_BLOCKS = PoolBlocks()


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
    block_ids: Sequence[int] = ()
    """In the sender's pool, where that is one that transports between devices work on."""

    @property
    def num_block_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def num_bytes(self) -> int:
        """With the tail."""
        return self.num_block_bytes + sum(tensor.nbytes for tensor in self.tail.values())

    def cut(self, num_bytes: int) -> tuple["Piece", "Piece | None"]:
        """As many of its blocks as `num_bytes` hold, one at least, and the rest, with which the tail goes."""
        num_blocks = max(1, num_bytes // self.bytes_per_block)
        if num_blocks >= self.num_blocks:
            return self, None
        first = replace(self, num_blocks=num_blocks, last=False, tail={}, block_ids=self.block_ids[:num_blocks])
        rest = replace(
            self,
            first_block=self.first_block + num_blocks,
            num_blocks=self.num_blocks - num_blocks,
            block_ids=self.block_ids[num_blocks:],
        )
        return first, rest


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


@dataclass(frozen=True, slots=True)
class Released:
    """On the receiver: the quarantine of a claimed transfer's blocks is over."""

    transfer_id: str


Event = Done | Failed | Released


class Receiver(Protocol):
    @property
    def endpoint(self) -> str:
        """Where senders reach it: `scheme:…`."""

    def register(self, transfer_id: str, num_blocks: int, store: Store, blocks: PoolBlocks = NO_BLOCKS) -> None:
        """Lets a transfer in. `store` is called by `poll`, on its thread; transports between devices write `blocks`
        instead, after `poll` has called their `claim`, and it calls their `landed`."""

    def abandon(self, transfer_id: str) -> None:
        """Known or not."""

    def poll(self) -> list[Event]: ...

    def close(self) -> None: ...


class Sender(Protocol):
    @property
    def idle(self) -> bool:
        """Nothing is on its way: poll need not be called."""

    def prepare(self, transfer_id: str, endpoint: str) -> None:
        """There will be something to send: what that takes may be done now. If it fails, so does the transfer."""

    def send(self, transfer_id: str, endpoint: str, piece: Piece) -> None:
        """Queues a piece, prepared for or not; never blocks."""

    def abandon(self, transfer_id: str) -> None:
        """Known or not."""

    def poll(self) -> list[Done | Failed]: ...

    def close(self) -> None: ...
