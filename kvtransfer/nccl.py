"""KV between any two GPUs that NCCL connects: blocks gathered into one buffer, one send, scattered into the pool.

Each pair of workers has a communicator of its own, built when it is first used. What is announced always comes, and is
always taken: a transfer that is not wanted any more is received into the buffer, and left there. So nobody but the
receiver's own thread writes its pool, and a quarantine lasts as long as one scatter.
"""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from ..wire.codec import ProtocolError
from ..wire.messages import KvPiece
from .block_mover import BlockMover
from .connection import Connection
from .device_pool import DevicePool
from .mark import DONE
from .pair_group import PairGroup, start_store
from .pair_messages import Coming, Drained, GroupOffer, Join, Landed, PoolOffer, ToReceiver, encode
from .pair_receiver import PairsReceiver, read_messages, send_grant
from .pair_sender import HANDSHAKE_S, Path, Reading, Unreachable
from .pairs_sender import PairsSender
from .transport import Piece

SCHEME = "nccl:"
PIECE_BYTES = 1 << 30
SLICE_BYTES = 128 << 20
"""Of a piece, sent at once."""
NUM_BUFFERS = 3
"""Of that size, at each end: one that is sent, one that waits for the link, and one for the pool."""


def slices_of(num_blocks: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, num_blocks)) for first in range(0, num_blocks, step)]


class GroupPeer:
    """A sender, and the only thread that writes the pool on its behalf."""

    grace_s = 0.0

    def __init__(self, connection: Connection, pool: DevicePool, offer: GroupOffer, stalled_s: float):
        self.connection = connection
        self._pool = pool
        self._offer = offer
        self._stalled_s = stalled_s
        self._lock = threading.Lock()
        self._granted: dict[str, tuple[int, ...]] = {}
        self._writing = ""
        self._revoked: set[str] = set()
        """What is being written, if it is not wanted any more: drained when that has ended."""
        self._take: Callable[[ToReceiver], None] = lambda message: None

    def listen(self, take: Callable[[ToReceiver], None]) -> None:
        self._take = take
        self.connection.send(encode(self._offer))
        if not isinstance(read_messages(self.connection), Join):
            raise ProtocolError("it did not join")
        mover = BlockMover(self._pool)
        group = PairGroup(
            1,
            self.connection,
            self._pool.device,
            name=self._offer.name,
            store_host=self.connection.local_host,
            store_port=self._offer.store_port,
            stalled_s=self._stalled_s,
        )
        try:
            step = self._offer.blocks_a_slice
            buffers = [mover.buffer(step) for _ in range(NUM_BUFFERS)]
            while True:
                match read_messages(self.connection):
                    case Coming() as coming:
                        self._receive(group, mover, buffers, coming)
                    case Landed():
                        raise ProtocolError("nothing lands by itself here")
                    case message:
                        take(message)
        finally:
            group.close()

    def _receive(self, group: PairGroup, mover: BlockMover, buffers: Sequence[Tensor], coming: Coming) -> None:
        """A slice is scattered while the next one comes."""
        piece = coming.piece
        if piece.first_block < 0 or not 0 <= piece.num_blocks <= self._pool.num_blocks:
            raise ProtocolError(f"a piece of {piece.num_blocks} blocks from {piece.first_block} on")
        slices = slices_of(piece.num_blocks, self._offer.blocks_a_slice)
        parts = [
            buffers[n % NUM_BUFFERS][: (each.stop - each.start) * self._pool.bytes_per_block]
            for n, each in enumerate(slices)
        ]
        coming_in = [group.start_receive(part) for part in parts[:NUM_BUFFERS]]
        for n, each in enumerate(slices):
            with group.lost_if_it_fails():
                coming_in[n].wait()
            self._scatter(mover, parts[n], piece.transfer_id, piece.first_block + each.start, each.stop - each.start)
            coming_in += [group.start_receive(part) for part in parts[n + NUM_BUFFERS : n + NUM_BUFFERS + 1]]
        group.finish()
        if piece.num_pieces is not None:
            with self._lock:
                self._granted.pop(piece.transfer_id, None)
        self._take(Landed(piece, coming.tail))

    def _scatter(self, mover: BlockMover, buffer: Tensor, transfer_id: str, first_block: int, num_blocks: int) -> None:
        with self._lock:
            block_ids = self._granted.get(transfer_id, ())[first_block : first_block + num_blocks]
            if len(block_ids) != num_blocks:
                return  # not wanted, or more than fits: `Landed` will say which
            self._writing = transfer_id
        mover.scatter(buffer, block_ids)
        with self._lock:
            self._writing = ""
            drained, self._revoked = self._revoked, set()
        for transfer_id in drained:
            self._take(Drained(transfer_id))

    def grant(self, transfer_id: str, block_ids: tuple[int, ...]) -> None:
        with self._lock:
            self._granted[transfer_id] = block_ids
        send_grant(self.connection, transfer_id, block_ids)

    def revoke(self, transfer_id: str) -> None:
        with self._lock:
            self._granted.pop(transfer_id, None)
            if self._writing == transfer_id:
                self._revoked.add(transfer_id)
                return
        self._take(Drained(transfer_id))


class GroupPath:
    max_piece_bytes = PIECE_BYTES

    def __init__(
        self,
        connection: Connection,
        pool: DevicePool,
        offer: GroupOffer,
        stalled_s: float,
        give_up: Callable[[str], None],
    ):
        self._connection = connection
        self._pool = pool
        self._mover = BlockMover(pool)
        connection.send(encode(Join()))
        self._group = PairGroup(
            0,
            connection,
            pool.device,
            name=offer.name,
            store_host=connection.peer_host,
            store_port=offer.store_port,
            stalled_s=stalled_s,
            on_abort=give_up,
        )
        self._step = offer.blocks_a_slice
        self._buffers = [self._mover.buffer(self._step) for _ in range(NUM_BUFFERS)]

    def move(self, piece: Piece, header: KvPiece, block_ids: Sequence[int], reading: Reading, *, hidden: bool) -> None:
        """A slice is gathered while the one before it is being sent. Once announced, all of them are sent."""
        self._connection.send(encode(Coming(header, tuple(bytes(tensor) for tensor in piece.tail.values()))))
        sent = [DONE] * NUM_BUFFERS
        for n, each in enumerate(slices_of(piece.num_blocks, self._step)):
            ids, turn = piece.block_ids[each], n % NUM_BUFFERS
            with self._group.lost_if_it_fails():
                sent[turn].wait()
            with reading() as wanted:
                if wanted:
                    self._mover.gather(ids, self._buffers[turn], hidden=hidden)
            sent[turn] = self._group.start_send(self._buffers[turn][: len(ids) * self._pool.bytes_per_block])
        self._group.finish()

    def close(self) -> None:
        self._group.close()


class GroupWay:
    def __init__(self, pool: DevicePool, stalled_s: float):
        self.bytes_per_block = pool.bytes_per_block
        self._pool = pool
        self._stalled_s = stalled_s

    def connect(self, endpoint: str) -> Connection:
        host, _, port = endpoint.removeprefix(SCHEME).rpartition(":")
        stream = socket.create_connection((host, int(port)), timeout=HANDSHAKE_S)
        stream.settimeout(None)
        return Connection(stream)

    def join(self, connection: Connection, offer: PoolOffer | GroupOffer, give_up: Callable[[str], None]) -> Path:
        if not isinstance(offer, GroupOffer):
            raise Unreachable(f"it offers {type(offer).__name__}")
        if self._pool.device.type == "cuda" and offer.device_id == self._pool.device_id:
            raise Unreachable("NCCL connects no GPU with itself")
        if not self._pool.geometry.fits(offer.geometry):
            raise Unreachable(f"its pool is {offer.geometry}, ours {self._pool.geometry}")
        return GroupPath(connection, self._pool, offer, self._stalled_s, give_up)


def open_nccl_receiver(
    pool: DevicePool,
    notify: Callable[[], None],
    host: str = "127.0.0.1",
    *,
    stalled_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> PairsReceiver:
    """Before the pool is in use. Raises OSError if `host` is no address of this machine."""
    BlockMover(pool).warm_up()
    store = start_store(host)
    listener = socket.create_server((host, 0), backlog=64)
    port = listener.getsockname()[1]

    def make_peer(connection: Connection) -> GroupPeer:
        blocks_a_slice = max(1, SLICE_BYTES // pool.bytes_per_block)
        offer = GroupOffer(pool.device_id, pool.geometry, blocks_a_slice, store.port, secrets.token_hex(16))
        return GroupPeer(connection, pool, offer, stalled_s)

    endpoint = f"{SCHEME}{host}:{port}"
    return PairsReceiver(endpoint, listener, make_peer, notify, bytes_per_block=pool.bytes_per_block, clock=clock)


def open_nccl_sender(pool: DevicePool, *, stalled_s: float = 30.0) -> PairsSender:
    """Before the pool is in use."""
    BlockMover(pool).warm_up()
    return PairsSender(GroupWay(pool, stalled_s), stalled_s=stalled_s)
