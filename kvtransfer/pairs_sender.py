"""A sender's pairs with all its receivers, as one `transport.Sender`."""

from collections import deque

from .pair_sender import PairSender, Way
from .transport import Done, Failed, Piece


class PairsSender:
    """Over one way. Fails all transfers to a receiver that is gone, or that answers nothing for
    `stalled_s`."""

    def __init__(self, way: Way, *, stalled_s: float = 30.0):
        self._way = way
        self._stalled_s = stalled_s
        self._pairs: dict[str, PairSender] = {}
        self._outgoing: dict[str, str] = {}  # transfer_id -> endpoint
        self._events: deque[Done | Failed] = deque()

    @property
    def idle(self) -> bool:
        return not self._outgoing

    def prepare(self, transfer_id: str, endpoint: str) -> None:
        """Connects, and claims the receiver's blocks."""
        assert transfer_id not in self._outgoing
        self._send(transfer_id, endpoint, None)

    def send(self, transfer_id: str, endpoint: str, piece: Piece) -> None:
        self._send(transfer_id, endpoint, piece)

    def _send(self, transfer_id: str, endpoint: str, piece: Piece | None) -> None:
        begun = transfer_id in self._outgoing
        assert self._outgoing.setdefault(transfer_id, endpoint) == endpoint
        pair = self._pairs.get(endpoint)
        if pair is not None and pair.send(transfer_id, piece):
            return
        if begun:
            return  # it failed with the pair
        pair = self._pairs[endpoint] = self._open(endpoint)
        if not pair.send(transfer_id, piece):  # at its end already
            self._events.append(pair.failure(transfer_id))

    def _open(self, endpoint: str) -> PairSender:
        ended = [endpoint for endpoint, pair in self._pairs.items() if pair.ended]
        predecessors = [self._pairs.pop(endpoint) for endpoint in ended]
        return PairSender(
            endpoint, self._way, self._events.append, predecessors=predecessors, stalled_s=self._stalled_s
        )

    def abandon(self, transfer_id: str) -> None:
        endpoint = self._outgoing.pop(transfer_id, None)
        pair = self._pairs.get(endpoint) if endpoint is not None else None
        if pair is not None:
            pair.abandon(transfer_id)

    def poll(self) -> list[Done | Failed]:
        events = []
        while self._events:
            event = self._events.popleft()
            if self._outgoing.pop(event.transfer_id, None) is not None:
                events.append(event)
        return events

    def close(self) -> None:
        for pair in self._pairs.values():
            pair.close()
        self._pairs.clear()
        self._outgoing.clear()
