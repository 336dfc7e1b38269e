"""The ends of `child` whose blocks go from pool to pool. They need torch, which takes a second to load."""

from collections.abc import Callable

from isthmus.kvtransfer import cuda_ipc, nccl
from isthmus.kvtransfer.block_mover import BlockMover
from isthmus.kvtransfer.pair_group import PairGroup
from isthmus.kvtransfer.transport import Receiver, Sender
from isthmus.tests.kvtransfer.blocks import Source
from isthmus.tests.kvtransfer.pools import MemfdMapper, PoolSource, SharedPool


def open_stopping(endpoint: str, transfer_id: str, halt: Callable[[], None], *, sending: bool) -> tuple[Source, Sender]:
    """Calls `halt` in the middle of its second move; with `sending`, when that is announced and not sent."""
    moves = iter(range(100))

    class StoppingMover(BlockMover):
        def store(self, block_ids, peer_address, peer_shape, peer_block_ids, **options):
            half = len(block_ids) // 2
            super().store(block_ids[:half], peer_address, peer_shape, peer_block_ids[:half], **options)
            if next(moves) == 1:
                halt()
            super().store(block_ids[half:], peer_address, peer_shape, peer_block_ids[half:], **options)

        def gather(self, *arguments, **options):
            if not sending and next(moves) == 1:
                halt()
            return super().gather(*arguments, **options)

    class StoppingGroup(PairGroup):
        def start_send(self, buffer, **options):
            if sending and next(moves) == 2:  # after the first byte of the pair, and the first piece
                halt()
            return super().start_send(buffer, **options)

    cuda_ipc.BlockMover = nccl.BlockMover = StoppingMover  # type: ignore[misc]
    nccl.PairGroup = StoppingGroup  # type: ignore[misc]
    shared = SharedPool()
    source = PoolSource(transfer_id, shared)
    if endpoint.startswith("nccl:"):
        return source, nccl.open_nccl_sender(shared.pool)
    return source, cuda_ipc.open_ipc_sender(shared.pool, mapper=MemfdMapper())


def open_receiver(transport: str) -> Receiver:
    shared = SharedPool()
    if transport == "nccl":
        return nccl.open_nccl_receiver(shared.pool, lambda: None)
    return cuda_ipc.open_ipc_receiver(shared.pool, lambda: None, mapper=MemfdMapper(shared))
