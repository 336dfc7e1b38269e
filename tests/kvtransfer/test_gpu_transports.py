"""Between real processes, and real GPUs where there are any: every byte arrives, and deaths stay with the dead."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from isthmus.kvtransfer.device_pool import DevicePool
from isthmus.kvtransfer.transport import Done, Failed, Piece, Receiver, Released
from isthmus.tests.kvtransfer.gpu_child import (
    make_pool,
    open_receiver,
    open_sender,
    pieces,
    register,
    right,
    wait_for,
)

PATIENCE_S = 5.0
WAYS = [
    pytest.param("cuda_ipc", 0, 0, marks=pytest.mark.gpu, id="cuda_ipc, one GPU"),
    pytest.param("cuda_ipc", 0, 1, marks=pytest.mark.multi_gpu, id="cuda_ipc, two GPUs"),
    pytest.param("nccl", 0, 1, marks=pytest.mark.multi_gpu, id="nccl"),
    pytest.param("nccl", -1, -1, id="gloo"),
]


@contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "isthmus.tests.kvtransfer.gpu_child", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def computes(device: int) -> bool:
    """The context lives."""
    ones = torch.ones(64, 64, device=f"cuda:{device}" if device >= 0 else "cpu")
    return float((ones @ ones).sum()) == 64**3


@pytest.mark.parametrize(("transport", "source", "target"), WAYS)
def test_every_byte_arrives_and_nothing_beside_it(transport: str, source: int, target: int) -> None:
    pool = make_pool(target)
    receiver = open_receiver(transport, pool)
    with child("send", transport, source, receiver.endpoint) as process:
        for num_blocks in (1, 59, 60, 61, 300):
            ids = register(receiver, pool, f"t{num_blocks}", num_blocks)
            tell(process, f"t{num_blocks} {num_blocks}")
            (event,) = wait_for(receiver.poll)
            assert isinstance(event, Done)
            assert event.num_bytes == num_blocks * pool.bytes_per_block + 200
            assert bytes(event.tail["logits"]) == bytes(range(200))
            assert right(pool, ids)
            assert hear(process) == "Done"
    receiver.close()


@pytest.mark.parametrize(("transport", "source", "target"), WAYS)
def test_a_sender_killed_while_it_sends(transport: str, source: int, target: int) -> None:
    pool = make_pool(target)
    receiver = open_receiver(transport, pool)
    with child("send", transport, source, receiver.endpoint) as process:
        deliver(receiver, pool, process, "warm")
        register(receiver, pool, "lost", 400)
        register(receiver, pool, "never begun", 2)
        tell(process, "lost 400 open")
        time.sleep(0.3)
        assert not [event for event in receiver.poll() if isinstance(event, Done)]
        process.kill()
        at = time.monotonic()
        events = wait_for(receiver.poll)
        assert isinstance(events[0], Failed)
        while not any(isinstance(event, Released) for event in events):
            events += wait_for(receiver.poll)
        assert time.monotonic() - at < PATIENCE_S
        assert {event.transfer_id for event in events} == {"lost"}
    assert computes(target)
    with child("send", transport, source, receiver.endpoint) as process:
        deliver(receiver, pool, process, "next")
    receiver.close()


@pytest.mark.parametrize(("transport", "source", "target"), WAYS)
def test_a_receiver_killed_and_started_again(transport: str, source: int, target: int) -> None:
    pool = make_pool(source)
    sender = open_sender(transport, pool)
    with child("receive", transport, target) as process:
        endpoint = hear(process)
        assert transfer(sender, endpoint, process, pieces(pool, 100), "t") == ["Done", "Done"]
        tell(process, "lost 400")
        assert hear(process) == "registered"
        sender.send("lost", endpoint, pieces(pool, 400)[0])
        time.sleep(0.3)
        process.kill()
        at = time.monotonic()
        (event,) = wait_for(sender.poll)
        assert isinstance(event, Failed)
        assert time.monotonic() - at < PATIENCE_S
    assert computes(source)
    with child("receive", transport, target) as process:
        assert transfer(sender, hear(process), process, pieces(pool, 100), "again") == ["Done", "Done"]
    sender.close()


@pytest.mark.gpu
def test_nccl_refuses_one_gpu_at_both_ends_so_that_another_way_is_taken() -> None:
    pool = make_pool(0)
    receiver, sender = open_receiver("nccl", pool), open_sender("nccl", pool)
    sender.send("t", receiver.endpoint, pieces(pool, 1)[0])
    (event,) = wait_for(sender.poll)
    assert isinstance(event, Failed)
    assert event.unreachable
    sender.close()
    receiver.close()


def deliver(receiver: Receiver, pool: DevicePool, process: subprocess.Popen[str], transfer_id: str) -> None:
    ids = register(receiver, pool, transfer_id, 100)
    tell(process, f"{transfer_id} 100")
    (event,) = wait_for(receiver.poll)
    assert isinstance(event, Done), event
    assert right(pool, ids)
    assert hear(process) == "Done"


def transfer(sender, endpoint: str, process: subprocess.Popen[str], parts: list[Piece], transfer_id: str) -> list[str]:
    """What the sender and the receiver report."""
    tell(process, f"{transfer_id} {sum(piece.num_blocks for piece in parts)}")
    assert hear(process) == "registered"
    for piece in parts:
        sender.send(transfer_id, endpoint, piece)
    return [type(wait_for(sender.poll)[0]).__name__, hear(process)]
