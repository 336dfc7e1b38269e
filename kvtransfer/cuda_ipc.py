"""KV between two GPUs of one host, or within one: the sender's kernel stores into the receiver's pool, which it maps.

No byte is copied twice and nothing of the receiver takes part, so the blocks of a transfer that ends early stay in
quarantine (`pair_receiver`) until the sender's thread has seen its kernel finish. A sender maps a pool from the
handshake until the receiver's socket closes: a dead receiver's memory is not free before.
"""

import logging
import secrets
import socket
import time
from collections.abc import Callable, Sequence

from ..wire.messages import KvPiece
from .block_mover import BlockMover
from .connection import Connection, Lost
from .device_memory import CudaMapper, DeviceMemoryError, Mapper
from .device_pool import DevicePool
from .host import boot_id
from .landing import peer_is_us
from .pair_messages import GroupOffer, Landed, PoolOffer, Revoke, ToReceiver, encode
from .pair_receiver import PairsReceiver, read_messages, send_grant
from .pair_sender import Path, Reading, Unreachable
from .pairs_sender import PairsSender
from .transport import Piece

log = logging.getLogger(__name__)

SCHEME = "cuda_ipc:"
PIECE_BYTES = 1 << 30
"""Moved at once: long enough to hide the launch, short enough to wait for."""
GRACE_S = 1.0


class IpcPeer:
    """A sender that has this pool mapped, or is about to."""

    grace_s = GRACE_S

    def __init__(self, connection: Connection, offer: PoolOffer):
        self.connection = connection
        self._offer = offer

    def listen(self, take: Callable[[ToReceiver], None]) -> None:
        self.connection.send(encode(self._offer))
        while True:
            take(read_messages(self.connection))

    def grant(self, transfer_id: str, block_ids: tuple[int, ...]) -> None:
        send_grant(self.connection, transfer_id, block_ids)

    def revoke(self, transfer_id: str) -> None:
        self.connection.send(encode(Revoke(transfer_id)))


class IpcPath:
    """To a pool that is mapped at an address."""

    max_piece_bytes = PIECE_BYTES

    def __init__(self, connection: Connection, pool: DevicePool, offer: PoolOffer, mapper: Mapper):
        self._connection = connection
        self._device = pool.device
        self._mapper = mapper
        self._shape = offer.geometry.shape
        self._mover = BlockMover(pool)
        self._base = mapper.open(offer.handle, pool.device)
        self._address = self._base + offer.offset

    def move(self, piece: Piece, header: KvPiece, block_ids: Sequence[int], reading: Reading, *, hidden: bool) -> None:
        if block_ids and max(block_ids) >= self._shape[1]:
            raise Lost(f"its pool has {self._shape[1]} blocks, and no {max(block_ids)}")
        with reading() as wanted:
            if not wanted:
                return
            if block_ids:
                self._mover.store(piece.block_ids, self._address, self._shape, block_ids, hidden=hidden)
        self._connection.send(encode(Landed(header, tuple(bytes(tensor) for tensor in piece.tail.values()))))

    def close(self) -> None:
        try:
            self._mapper.close(self._base, self._device)
        except DeviceMemoryError as error:
            log.warning("a mapping of a peer's KV pool stays open: %s", error)


class IpcWay:
    def __init__(self, pool: DevicePool, mapper: Mapper):
        self.bytes_per_block = pool.bytes_per_block
        self._pool = pool
        self._mapper = mapper

    def connect(self, endpoint: str) -> Connection:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect(_address(endpoint))
            if not peer_is_us(stream):
                raise PermissionError("it belongs to another user")
        except OSError:
            stream.close()
            raise
        return Connection(stream)

    def join(self, connection: Connection, offer: PoolOffer | GroupOffer, give_up: Callable[[str], None]) -> Path:
        if not isinstance(offer, PoolOffer):
            raise Unreachable(f"it offers {type(offer).__name__}")
        if offer.boot_id != boot_id():
            raise Unreachable("it is another host's")
        if not self._pool.geometry.fits(offer.geometry):
            raise Unreachable(f"its pool is {offer.geometry}, ours {self._pool.geometry}")
        try:
            return IpcPath(connection, self._pool, offer, self._mapper)
        except DeviceMemoryError as error:
            raise Unreachable(str(error)) from error


def open_ipc_receiver(
    pool: DevicePool,
    notify: Callable[[], None],
    *,
    mapper: Mapper | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> PairsReceiver:
    """Raises DeviceMemoryError where the pool's memory cannot be shared, OSError where there are no abstract
    sockets."""
    handle, offset = (mapper or CudaMapper()).export(pool.kv)
    offer = PoolOffer(boot_id(), pool.geometry, handle, offset)
    endpoint = f"{SCHEME}isthmus-kv-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(_address(endpoint))
    listener.listen(64)

    def make_peer(connection: Connection) -> IpcPeer:
        return IpcPeer(connection, offer)

    return PairsReceiver(endpoint, listener, make_peer, notify, bytes_per_block=pool.bytes_per_block, clock=clock)


def open_ipc_sender(pool: DevicePool, *, mapper: Mapper | None = None, stalled_s: float = 30.0) -> PairsSender:
    """Before the pool is in use."""
    BlockMover(pool).warm_up()
    return PairsSender(IpcWay(pool, mapper or CudaMapper()), stalled_s=stalled_s)


def _address(endpoint: str) -> bytes:
    """Of the abstract Unix socket."""
    return b"\0" + endpoint.removeprefix(SCHEME).encode()
