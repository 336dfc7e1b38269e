"""All the ways KV can leave a worker, as one sender: each transfer takes the first that leads to its receiver."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from .leased_receiver import SEPARATOR
from .transport import Done, Failed, Piece, Sender

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Transfer:
    alternatives: list[str]
    """Endpoints that were not tried yet."""
    sender: Sender | None = None
    endpoint: str = ""
    pieces: list[Piece] = field(default_factory=list)
    """All so far, to be sent again where the next alternative is taken."""


class AnySender:
    """`senders` are known by the scheme of the endpoints they reach. An endpoint may list alternatives."""

    def __init__(self, senders: Mapping[str, Sender]):
        self._senders = senders
        self._unreachable: set[str] = set()
        self._transfers: dict[str, _Transfer] = {}
        self._events: list[Done | Failed] = []

    @property
    def idle(self) -> bool:
        return not self._transfers and not self._events

    def prepare(self, transfer_id: str, endpoint: str) -> None:
        assert transfer_id not in self._transfers
        transfer = self._transfers[transfer_id] = _Transfer(self._alternatives(endpoint))
        self._try_next(transfer_id, transfer, f"no way to {endpoint}")

    def send(self, transfer_id: str, endpoint: str, piece: Piece) -> None:
        if transfer_id not in self._transfers:
            self.prepare(transfer_id, endpoint)
        transfer = self._transfers[transfer_id]
        transfer.pieces.append(piece)
        if transfer.sender is not None:
            transfer.sender.send(transfer_id, transfer.endpoint, piece)

    def abandon(self, transfer_id: str) -> None:
        transfer = self._transfers.pop(transfer_id, None)
        if transfer is not None and transfer.sender is not None:
            transfer.sender.abandon(transfer_id)
        self._events = [event for event in self._events if event.transfer_id != transfer_id]

    def poll(self) -> list[Done | Failed]:
        for event in [event for sender in self._senders.values() for event in sender.poll()]:
            if isinstance(event, Failed) and event.unreachable:
                self._on_unreachable(event)
            else:
                self._events.append(event)
        events, self._events = self._events, []
        for event in events:
            del self._transfers[event.transfer_id]
        return events

    def close(self) -> None:
        for sender in self._senders.values():
            sender.close()

    def _alternatives(self, endpoint: str) -> list[str]:
        each = [one for one in endpoint.split(SEPARATOR) if one.partition(":")[0] in self._senders]
        return [one for one in each if one not in self._unreachable]

    def _on_unreachable(self, event: Failed) -> None:
        transfer = self._transfers[event.transfer_id]
        if transfer.endpoint not in self._unreachable:
            self._unreachable.add(transfer.endpoint)
            log.info("KV goes another way: %s", event.error)
        self._try_next(event.transfer_id, transfer, event.error)

    def _try_next(self, transfer_id: str, transfer: _Transfer, error: str) -> None:
        if not transfer.alternatives:
            transfer.sender = None
            self._events.append(Failed(transfer_id, error, unreachable=True))
            return
        transfer.endpoint = transfer.alternatives.pop(0)
        transfer.sender = self._senders[transfer.endpoint.partition(":")[0]]
        transfer.sender.prepare(transfer_id, transfer.endpoint)
        for piece in transfer.pieces:
            transfer.sender.send(transfer_id, transfer.endpoint, piece)
