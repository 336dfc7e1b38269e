"""The receiving end of transports between devices: who may write which blocks, and until when.

    register ──Claim, and the owner agrees──> claimed by one sender ──all landed──> Done
        └──abandon──> gone                        └──abandon, or failed──> quarantine ──drained──> Released

A block in quarantine is drained when its writer has said so, or has been dead for `grace_s`: a kernel that was in
flight when its process was killed has come to its end by then, and the driver starts no other.
"""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ..wire.codec import ProtocolError
from .connection import Connection, Lost
from .incoming import Incoming
from .pair_messages import Broken, Claim, Drained, Granted, Landed, Refused, ToReceiver, decode_for_receiver, encode
from .transport import NO_BLOCKS, Done, Event, Failed, PoolBlocks, Released, Store

log = logging.getLogger(__name__)

CLOSE_S = 3.0


class Peer(Protocol):
    """One sender, as its thread and the receiver's `poll` see it."""

    connection: Connection
    grace_s: float
    """After its end, until nothing is written on its behalf any more."""

    def listen(self, take: Callable[[ToReceiver], None]) -> None:
        """On the sender's own thread: gives `take` what it says, until it raises Lost, ProtocolError or OSError."""

    def grant(self, transfer_id: str, block_ids: tuple[int, ...]) -> None:
        """From now on the blocks may be written on its behalf."""

    def revoke(self, transfer_id: str) -> None:
        """No more; `listen` gives Drained when that is so."""


@dataclass(slots=True)
class _Transfer:
    blocks: PoolBlocks
    peer: Peer | None = None
    """Who has claimed it."""


@dataclass(slots=True)
class _Quarantine:
    peer: Peer
    ends_at: float | None = None
    """None while the peer lives: it will say."""


class PairsReceiver:
    """A `transport.Receiver`. `notify` is called, on another thread, when `poll` has something to do."""

    def __init__(
        self,
        endpoint: str,
        listener: socket.socket,
        make_peer: Callable[[Connection], Peer],
        notify: Callable[[], None],
        *,
        bytes_per_block: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.endpoint = endpoint
        self._listener = listener
        self._make_peer = make_peer
        self._notify = notify
        self._bytes_per_block = bytes_per_block
        self._clock = clock
        self._incoming = Incoming()
        self._transfers: dict[str, _Transfer] = {}
        self._quarantine: dict[str, _Quarantine] = {}
        self._arrived: deque[tuple[Peer, ToReceiver | None]] = deque()  # None: the sender is gone
        self._peers: list[Peer] = []
        self._dead: dict[Peer, float] = {}
        """When each that still has blocks in quarantine went."""
        self._threads: list[threading.Thread] = []
        self._start(self._accept, "kv-pair-listener")

    @property
    def num_quarantined(self) -> int:
        """Transfers whose blocks may still be written, though nobody wants that."""
        return len(self._quarantine)

    def register(self, transfer_id: str, num_blocks: int, store: Store, blocks: PoolBlocks = NO_BLOCKS) -> None:
        if len(blocks.block_ids) != num_blocks:
            raise ValueError(f"{len(blocks.block_ids)} block ids for a transfer of {num_blocks} blocks")
        self._incoming.register(transfer_id, num_blocks, _stored_already)
        self._transfers[transfer_id] = _Transfer(blocks)

    def abandon(self, transfer_id: str) -> None:
        self._incoming.abandon(transfer_id)
        self._withdraw(transfer_id)

    def poll(self) -> list[Event]:
        events: list[Event] = []
        while self._arrived:
            peer, message = self._arrived.popleft()
            events += self._lose(peer) if message is None else self._on_message(peer, message)
        for peer in self._peers:
            peer.connection.flush()
        return events + self._release_due()

    def _on_message(self, peer: Peer, message: ToReceiver) -> list[Event]:
        match message:
            case Claim(transfer_id=transfer_id):
                self._on_claim(peer, transfer_id)
            case Landed():
                return self._on_landed(peer, message)
            case Broken(transfer_id=transfer_id, error=error):
                failed = self._incoming.fail([transfer_id], error) if self._holds(peer, transfer_id) else []
                return [*self._end(failed), *self._on_drained(peer, transfer_id)]
            case Drained(transfer_id=transfer_id):
                return self._on_drained(peer, transfer_id)
            case other:
                log.warning("a sender of KV says %s out of turn", type(other).__name__)
                peer.connection.shut()
        return []

    def _on_claim(self, peer: Peer, transfer_id: str) -> None:
        transfer = self._transfers.get(transfer_id)
        if transfer is None or transfer.peer is not None or not transfer.blocks.claim():
            log.debug("transfer %s has no taker", transfer_id)
            peer.connection.send(encode(Refused(transfer_id)))
            return
        transfer.peer = peer
        peer.grant(transfer_id, tuple(transfer.blocks.block_ids))

    def _on_landed(self, peer: Peer, landed: Landed) -> list[Event]:
        """A piece of a transfer that was abandoned meanwhile, or was never this sender's, finds no taker."""
        transfer_id = landed.piece.transfer_id
        if not self._holds(peer, transfer_id):
            return []
        self._transfers[transfer_id].blocks.landed()
        num_bytes = landed.piece.num_blocks * self._bytes_per_block
        event = self._incoming.take(landed.piece, num_bytes, [memoryview(tensor) for tensor in landed.tail])
        return [] if event is None else self._end([event])

    def _holds(self, peer: Peer, transfer_id: str) -> bool:
        transfer = self._transfers.get(transfer_id)
        return transfer is not None and transfer.peer is peer

    def _end(self, events: Sequence[Done | Failed]) -> list[Event]:
        for event in events:
            if isinstance(event, Failed):
                self._withdraw(event.transfer_id)
            else:
                del self._transfers[event.transfer_id]
        return list(events)

    def _withdraw(self, transfer_id: str) -> None:
        """Nothing of it is wanted any more; what may be on its way is put into quarantine."""
        transfer = self._transfers.pop(transfer_id, None)
        if transfer is None or transfer.peer is None:
            return
        peer = transfer.peer
        gone_at = self._dead.get(peer)
        self._quarantine[transfer_id] = _Quarantine(peer, None if gone_at is None else gone_at + peer.grace_s)
        if gone_at is None:
            peer.revoke(transfer_id)

    def _on_drained(self, peer: Peer, transfer_id: str) -> list[Event]:
        quarantine = self._quarantine.get(transfer_id)
        return self._release([transfer_id]) if quarantine is not None and quarantine.peer is peer else []

    def _release_due(self) -> list[Event]:
        now = self._clock()
        ends = {transfer_id: quarantine.ends_at for transfer_id, quarantine in self._quarantine.items()}
        return self._release([transfer_id for transfer_id, at in ends.items() if at is not None and at <= now])

    def _release(self, transfer_ids: Sequence[str]) -> list[Event]:
        for transfer_id in transfer_ids:
            del self._quarantine[transfer_id]
        return [Released(transfer_id) for transfer_id in transfer_ids]

    def _lose(self, peer: Peer) -> list[Event]:
        """It is dead, or has closed."""
        self._peers.remove(peer)
        peer.connection.close()
        self._dead = {each: at for each, at in self._dead.items() if self._guards(each)} | {peer: self._clock()}
        for quarantine in self._quarantine.values():
            if quarantine.peer is peer:
                quarantine.ends_at = self._dead[peer] + peer.grace_s
        claimed = sorted(t for t, transfer in self._transfers.items() if transfer.peer is peer)
        return self._end(self._incoming.fail(claimed, "its sender is gone"))

    def _guards(self, peer: Peer) -> bool:
        return any(quarantine.peer is peer for quarantine in self._quarantine.values())

    # On threads.

    def _start(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return  # closed
            peer = self._make_peer(Connection(stream))
            self._peers.append(peer)
            self._start(partial(self._listen, peer), "kv-pair-receiver")

    def _listen(self, peer: Peer) -> None:
        def take(message: ToReceiver) -> None:
            self._arrived.append((peer, message))
            self._notify()

        try:
            peer.listen(take)
        except (Lost, OSError) as error:
            log.debug("a sender of KV: %s", error)
        except ProtocolError as error:
            log.warning("dropping a sender of KV: %s", error)
        except Exception:
            log.exception("dropping a sender of KV")
        self._arrived.append((peer, None))
        self._notify()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in list(self._peers):
            peer.connection.shut()
        for thread in self._threads:
            thread.join(CLOSE_S)
        for peer in list(self._peers):
            peer.connection.close()


def read_messages(connection: Connection) -> ToReceiver:
    """The next one. Raises Lost or ProtocolError."""
    payload = connection.receive()
    assert payload is not None
    return decode_for_receiver(payload)


def send_grant(connection: Connection, transfer_id: str, block_ids: tuple[int, ...]) -> None:
    connection.send(encode(Granted(transfer_id, block_ids)))


def _stored_already(first_block: int, num_blocks: int, payload: memoryview) -> None:
    raise AssertionError("pieces between devices are in their place when they are announced")
