"""What a worker opens to move KV: every transport it has."""

import logging
from collections.abc import Callable, Sequence

from .any_sender import AnySender
from .leased_receiver import LeasedReceiver
from .shm_receiver import ShmReceiver
from .shm_sender import ShmSender
from .transport import Receiver
from .zmq_transport import ZmqReceiver, ZmqSender

log = logging.getLogger(__name__)

TRANSPORTS = ("shm", "zmq")
"""In order of preference."""
LEASE_S = 30.0


def open_receiver(
    notify: Callable[[], None],
    *,
    host: str = "127.0.0.1",
    transports: Sequence[str] = TRANSPORTS,
    lease_s: float = LEASE_S,
) -> LeasedReceiver:
    """Reached over each of `transports` that works here. `notify` is called, on any thread, when something has come.
    Raises ValueError if none works, or one is not known."""
    receivers: list[Receiver] = []
    for name in transports:
        match name:
            case "shm":
                try:
                    receivers.append(ShmReceiver(notify))
                except OSError as error:
                    log.warning("no KV through shared memory: %s", error)
            case "zmq":
                receivers.append(ZmqReceiver(notify, host))
            case _:
                raise ValueError(f"there is no transport {name!r}, only {', '.join(TRANSPORTS)}")
    if not receivers:
        raise ValueError(f"KV cannot be received: none of {', '.join(transports)} works here")
    return LeasedReceiver(receivers, lease_s=lease_s)


def open_sender() -> AnySender:
    """Over every transport."""
    return AnySender({"shm": ShmSender(), "tcp": ZmqSender()})
