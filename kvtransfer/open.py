"""What a worker opens to move KV: every transport it has."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..wire.curve import ClientKeys, ServerKeys
from .any_sender import AnySender
from .leased_receiver import LeasedReceiver
from .shm_receiver import ShmReceiver
from .shm_sender import ShmSender
from .transport import Receiver, Sender
from .zmq_transport import ZmqReceiver, ZmqSender

if TYPE_CHECKING:
    from .device_pool import DevicePool

log = logging.getLogger(__name__)

DEVICE_TRANSPORTS = ("cuda_ipc", "nccl")
"""From pool to pool, between GPUs."""
HOST_TRANSPORTS = ("shm", "zmq")
TRANSPORTS = DEVICE_TRANSPORTS + HOST_TRANSPORTS
"""In order of preference."""
LEASE_S = 30.0


def pool_of(engine: object) -> "DevicePool | None":
    """Of an engine that shows its pool, a tensor on a GPU, as `kv`; None for others, whose blocks travel as bytes."""
    kv = getattr(engine, "kv", None)
    if kv is None or not kv.is_cuda:
        return None
    from .device_pool import DevicePool

    return DevicePool(kv)


def open_receiver(
    notify: Callable[[], None],
    *,
    host: str = "127.0.0.1",
    transports: Sequence[str] = TRANSPORTS,
    lease_s: float = LEASE_S,
    pool: "DevicePool | None" = None,
    keys: ServerKeys | None = None,
) -> LeasedReceiver:
    """Reached over each of `transports` that works here; those between devices need a `pool`. `notify` is called, on
    any thread, when something has come. `keys` are those of zmq alone: nccl asks for none. Raises ValueError if none
    works, or one is not known."""
    receivers: list[Receiver] = []
    for name in transports:
        if name not in TRANSPORTS:
            raise ValueError(f"there is no transport {name!r}, only {', '.join(TRANSPORTS)}")
        if pool is None and name in DEVICE_TRANSPORTS:
            continue
        try:
            receivers.append(_open_receiver(name, notify, host, pool, keys))
        except (OSError, RuntimeError) as error:
            log.warning("no KV over %s: %s", name, error)
    if not receivers:
        raise ValueError(f"KV cannot be received: none of {', '.join(transports)} works here")
    return LeasedReceiver(receivers, lease_s=lease_s)


def _open_receiver(
    name: str, notify: Callable[[], None], host: str, pool: "DevicePool | None", keys: ServerKeys | None
) -> Receiver:
    """Raises OSError or RuntimeError where it does not work. Workers without a GPU do not load torch for it."""
    match name:
        case "cuda_ipc":
            from .cuda_ipc import open_ipc_receiver

            assert pool is not None
            return open_ipc_receiver(pool, notify)
        case "nccl":
            from .nccl import open_nccl_receiver

            assert pool is not None
            return open_nccl_receiver(pool, notify, host)
        case "shm":
            return ShmReceiver(notify)
        case _:
            return ZmqReceiver(notify, host, keys)


def open_sender(pool: "DevicePool | None" = None, keys: ClientKeys | None = None) -> AnySender:
    """Over every transport; over those between devices with a `pool`. `keys`: those of zmq."""
    senders: dict[str, Sender] = {"shm": ShmSender(), "tcp": ZmqSender(keys=keys)}
    if pool is not None:
        from .cuda_ipc import open_ipc_sender
        from .nccl import open_nccl_sender

        senders |= {"cuda_ipc": open_ipc_sender(pool), "nccl": open_nccl_sender(pool)}
    return AnySender(senders)
