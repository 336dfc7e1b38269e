"""What a worker logs about placements: each line carries the id of the request, as the router's lines do."""

import logging
from typing import Any

from ..wire.messages import Declined, Failed, FromWorker, Prefill, Prefilled, Reserve, Reserved

log = logging.getLogger(__name__)

NUM_KEPT = 8192
"""Placements whose request is known: the latest, far more than a worker has at a time."""


class PlacementLog:
    """Told of the messages that come and go. A placement's ways are worth a line at DEBUG, its failure one at INFO,
    or at WARNING where it is the worker that failed it."""

    def __init__(self) -> None:
        self._request_ids: dict[int, str] = {}

    def received(self, message: Reserve | Prefill) -> None:
        self._request_ids[message.placement] = message.request_id
        if len(self._request_ids) > NUM_KEPT:
            del self._request_ids[next(iter(self._request_ids))]
        self._tell(logging.DEBUG, message.placement, "%s of placement %d", type(message).__name__, message.placement)

    def sent(self, message: FromWorker) -> None:
        match message:
            case Failed(placement, error, retriable):
                self._tell(logging.WARNING if retriable else logging.INFO, placement, "failed: %s", error)
            case Declined(placement, reason):
                self._tell(logging.DEBUG, placement, "declined: %s", reason)
            case Reserved(placement, num_cached):
                self._tell(logging.DEBUG, placement, "reserved, %d tokens cached", num_cached)
            case Prefilled(placement, num_cached, compute_s, num_bytes, transfer_s):
                how = "computed in %.3f s, %d tokens cached; %d bytes of KV sent, %.3f s after that"
                self._tell(logging.DEBUG, placement, how, compute_s, num_cached, num_bytes, transfer_s)
            case _:
                pass

    def _tell(self, level: int, placement: int, what: str, *values: Any) -> None:
        if log.isEnabledFor(level):
            request_id = self._request_ids.get(placement, "")
            log.log(level, "request %s: " + what, request_id or "?", *values, extra={"request_id": request_id})
