"""All the ways KV can reach a worker, as one receiver that waits for no transfer forever."""

import time
from collections.abc import Callable, Iterable, Sequence

from .leases import Leases
from .transport import NO_BLOCKS, Event, Failed, PoolBlocks, Receiver, Released, Store

SEPARATOR = ";"
"""Between the alternatives of an endpoint, the best one first."""


class LeasedReceiver:
    """A transfer may come over any of `receivers`, and fails when its lease has expired."""

    def __init__(
        self, receivers: Sequence[Receiver], *, lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._receivers = receivers
        self._leases = Leases(lease_s)
        self._clock = clock

    @property
    def endpoint(self) -> str:
        return SEPARATOR.join(receiver.endpoint for receiver in self._receivers)

    @property
    def num_expired(self) -> int:
        return self._leases.num_expired

    def register(self, transfer_id: str, num_blocks: int, store: Store, blocks: PoolBlocks = NO_BLOCKS) -> None:
        self._leases.grant(transfer_id, self._clock())
        for receiver in self._receivers:
            receiver.register(transfer_id, num_blocks, store, blocks)

    def renew(self, transfer_ids: Iterable[str]) -> None:
        """Their senders still hold them."""
        self._leases.renew(transfer_ids, self._clock())

    def abandon(self, transfer_id: str) -> None:
        self._leases.end(transfer_id)
        for receiver in self._receivers:
            receiver.abandon(transfer_id)

    def poll(self) -> list[Event]:
        events: list[Event] = []
        for receiver in self._receivers:
            for event in receiver.poll():
                if not isinstance(event, Released):
                    self.abandon(event.transfer_id)  # on the others, too
                events.append(event)
        for transfer_id in self._leases.expire(self._clock()):
            self.abandon(transfer_id)
            events.append(Failed(transfer_id, "lease expired"))
        return events

    def close(self) -> None:
        for receiver in self._receivers:
            receiver.close()
