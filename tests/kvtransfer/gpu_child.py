"""One end of transfers between GPUs, as a process of its own.

    python -m isthmus.tests.kvtransfer.gpu_child send TRANSPORT DEVICE ENDPOINT
    python -m isthmus.tests.kvtransfer.gpu_child receive TRANSPORT DEVICE

A line "TRANSFER_ID NUM_BLOCKS" starts a transfer. The receiver prints its endpoint, then for each transfer Done, Failed
or WRONG. The sender prints each transfer's Done or Failed; after "TRANSFER_ID NUM_BLOCKS open" it keeps back the last
word and prints nothing. Device -1 is the CPU.
"""

import select
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from isthmus.kvtransfer import cuda_ipc, nccl
from isthmus.kvtransfer.device_pool import DevicePool
from isthmus.kvtransfer.transport import Event, Piece, PoolBlocks, Receiver, Sender

SHAPE = (4, 512, 2, 2, 16, 64)
POISON = -7
"""What blocks hold that nobody has written."""


def make_pool(device: int) -> DevicePool:
    if device >= 0:
        torch.cuda.set_device(device)
    where = f"cuda:{device}" if device >= 0 else "cpu"
    pool = DevicePool(torch.empty(SHAPE, dtype=torch.bfloat16, device=where))
    pool.kv.view(torch.int32).fill_(POISON)
    return pool


def settle(pool: DevicePool) -> None:
    if pool.device.type == "cuda":
        torch.cuda.synchronize(pool.device)


def open_receiver(transport: str, pool: DevicePool) -> Receiver:
    if transport == "cuda_ipc":
        return cuda_ipc.open_ipc_receiver(pool, lambda: None)
    return nccl.open_nccl_receiver(pool, lambda: None)


def open_sender(transport: str, pool: DevicePool) -> Sender:
    return cuda_ipc.open_ipc_sender(pool) if transport == "cuda_ipc" else nccl.open_nccl_sender(pool)


def scattered(num_blocks: int, seed: int) -> list[int]:
    return torch.randperm(SHAPE[1], generator=torch.Generator().manual_seed(seed))[:num_blocks].tolist()


def numbers(pool: DevicePool, num_blocks: int) -> torch.Tensor:
    """int32 [num_layers, num_blocks, 1]: what the blocks of a transfer are made of, all different."""
    count = torch.arange(1, SHAPE[0] * num_blocks + 1, dtype=torch.int32, device=pool.device)
    return count.view(num_blocks, SHAPE[0]).T.unsqueeze(2)


def pieces(pool: DevicePool, num_blocks: int, step: int = 60) -> list[Piece]:
    """Of blocks that are filled, all over the pool."""
    ids = scattered(num_blocks, 1)
    pool.kv.view(torch.int32).flatten(2)[:, ids] = numbers(pool, num_blocks)
    settle(pool)
    return [_piece(pool, first, ids[first : first + step], num_blocks) for first in range(0, num_blocks, step)]


def _piece(pool: DevicePool, first: int, ids: Sequence[int], num_blocks: int) -> Piece:
    last = first + len(ids) == num_blocks
    tail = {"logits": memoryview(bytes(range(200)))} if last else {}
    return Piece(first, len(ids), pool.bytes_per_block, _not_read, last, tail, ids)


def register(receiver: Receiver, pool: DevicePool, transfer_id: str, num_blocks: int) -> list[int]:
    ids = scattered(num_blocks, 2)
    pool.kv.view(torch.int32).fill_(POISON)
    settle(pool)
    receiver.register(transfer_id, num_blocks, _not_stored, PoolBlocks(ids))
    return ids


def right(pool: DevicePool, ids: Sequence[int]) -> bool:
    """Every byte arrived, and no other block was touched."""
    expected = torch.full((SHAPE[0], SHAPE[1], 1), POISON, dtype=torch.int32, device=pool.device)
    expected[:, ids] = numbers(pool, len(ids))
    return bool((pool.kv.view(torch.int32).flatten(2) == expected).all())


def wait_for(poll: Callable[[], Sequence[Event]], patience_s: float = 20.0) -> list[Event]:
    deadline = time.monotonic() + patience_s
    while not (events := list(poll())):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.0005)
    return events


def _not_read(first_block: int, num_blocks: int, out: memoryview | None) -> memoryview:
    raise AssertionError("read by hand")


def _not_stored(first_block: int, num_blocks: int, payload: memoryview) -> None:
    raise AssertionError("stored by hand")


def send(transport: str, device: int, endpoint: str) -> None:
    pool = make_pool(device)
    sender = open_sender(transport, pool)
    for line in sys.stdin:
        transfer_id, num_blocks, *stay_open = line.split()
        for piece in pieces(pool, int(num_blocks)):
            sender.send(transfer_id, endpoint, replace(piece, last=False) if stay_open else piece)
        if stay_open:
            continue
        print(type(wait_for(sender.poll)[0]).__name__, flush=True)
    sender.close()


def receive(transport: str, device: int) -> None:
    pool = make_pool(device)
    receiver = open_receiver(transport, pool)
    print(receiver.endpoint, flush=True)
    ids: list[int] = []
    while True:
        if select.select([sys.stdin], [], [], 0.0005)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            transfer_id, num_blocks = line.split()
            ids = register(receiver, pool, transfer_id, int(num_blocks))
            print("registered", flush=True)
        for event in receiver.poll():
            print(type(event).__name__ if right(pool, ids) else "WRONG", flush=True)
    receiver.close()


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        receive(sys.argv[2], int(sys.argv[3]))
