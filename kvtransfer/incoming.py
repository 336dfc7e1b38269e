"""The transfers a receiver lets in, and what has come of each: the same for every transport."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..wire.messages import KvPiece
from .transport import Done, Failed, Store

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Transfer:
    num_blocks: int
    store: Store
    num_pieces_stored: int = 0
    num_pieces: int | None = None
    stored: set[int] = field(default_factory=set)
    num_bytes: int = 0
    tail: dict[str, memoryview] = field(default_factory=dict)


class Incoming:
    """Pieces may come in any order, each block once. Whatever does not fit fails its transfer."""

    def __init__(self, keep: Callable[[memoryview], memoryview] = lambda tensor: tensor) -> None:
        """`keep` makes a tail tensor outlive the call of `take`."""
        self._transfers: dict[str, _Transfer] = {}
        self._keep = keep

    def __contains__(self, transfer_id: str) -> bool:
        return transfer_id in self._transfers

    def register(self, transfer_id: str, num_blocks: int, store: Store) -> None:
        assert transfer_id not in self._transfers
        self._transfers[transfer_id] = _Transfer(num_blocks, store)

    def abandon(self, transfer_id: str) -> None:
        self._transfers.pop(transfer_id, None)

    def fail(self, transfer_ids: Iterable[str], error: str) -> list[Failed]:
        """Those of them that are still registered."""
        known = [transfer_id for transfer_id in transfer_ids if transfer_id in self._transfers]
        for transfer_id in known:
            del self._transfers[transfer_id]
        return [Failed(transfer_id, error) for transfer_id in known]

    def take(self, piece: KvPiece, payload: memoryview | int, tail: Sequence[memoryview]) -> Done | Failed | None:
        """Stores a piece; the transfer's end, if that was it. `payload`: its blocks, or where they are in their place
        already, how many bytes they are."""
        transfer_id = piece.transfer_id
        transfer = self._transfers.get(transfer_id)
        if transfer is None:
            log.debug("transfer %s has no taker", transfer_id)
            return None
        try:
            self._store(transfer, piece, payload, tail)
        except ValueError as error:
            del self._transfers[transfer_id]
            return Failed(transfer_id, str(error))
        if transfer.num_pieces != transfer.num_pieces_stored:
            return None
        del self._transfers[transfer_id]
        if len(transfer.stored) != transfer.num_blocks:
            return Failed(transfer_id, f"{len(transfer.stored)} of {transfer.num_blocks} blocks came")
        return Done(transfer_id, transfer.num_bytes, transfer.tail)

    def _store(
        self, transfer: _Transfer, piece: KvPiece, payload: memoryview | int, tail: Sequence[memoryview]
    ) -> None:
        end = piece.first_block + piece.num_blocks
        if piece.first_block < 0 or piece.num_blocks < 0 or end > transfer.num_blocks:
            raise ValueError(f"blocks {piece.first_block} to {end} of a transfer of {transfer.num_blocks}")
        if len(tail) != len(piece.tail):
            raise ValueError(f"{len(tail)} tail tensors where {len(piece.tail)} were announced")
        blocks = range(piece.first_block, end)
        if not transfer.stored.isdisjoint(blocks):
            raise ValueError(f"blocks {piece.first_block} to {end} came twice")
        num_block_bytes = payload if isinstance(payload, int) else payload.nbytes
        if piece.num_blocks and not isinstance(payload, int):
            transfer.store(piece.first_block, piece.num_blocks, payload)
        transfer.stored.update(blocks)
        transfer.num_pieces_stored += 1
        transfer.num_bytes += num_block_bytes + sum(tensor.nbytes for tensor in tail)
        if piece.num_pieces is not None:
            transfer.num_pieces = piece.num_pieces
            transfer.tail = {name: self._keep(tensor) for name, tensor in zip(piece.tail, tail, strict=True)}
