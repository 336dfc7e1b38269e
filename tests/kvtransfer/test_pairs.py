"""Pairs: what each end does when the other one is slow, strange, elsewhere, or gone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import torch
from isthmus.kvtransfer import cuda_ipc
from isthmus.kvtransfer.any_sender import AnySender
from isthmus.kvtransfer.block_mover import BlockMover
from isthmus.kvtransfer.connection import MAX_MESSAGE_BYTES, Connection, Lost
from isthmus.kvtransfer.cuda_ipc import IpcPeer, open_ipc_receiver, open_ipc_sender
from isthmus.kvtransfer.device_memory import CudaMapper, DeviceMemoryError
from isthmus.kvtransfer.device_pool import DevicePool
from isthmus.kvtransfer.nccl import open_nccl_receiver, open_nccl_sender
from isthmus.kvtransfer.open import open_receiver, pool_of
from isthmus.kvtransfer.pair_messages import Claim, Drained, Granted, Landed, Refused, Revoke, decode_for_sender, encode
from isthmus.kvtransfer.pair_receiver import PairsReceiver
from isthmus.kvtransfer.transport import Done, Event, Failed, PoolBlocks, Released
from isthmus.kvtransfer.zmq_transport import ZmqReceiver, ZmqSender
from isthmus.tests.kvtransfer.blocks import BLOCK, Source, Target
from isthmus.tests.kvtransfer.pools import MemfdMapper, PoolSource, SharedPool
from isthmus.wire.messages import KvPiece

PATIENCE_S = 5.0


def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def collect(poll: Callable[[], list[Event]], count: int, patience_s: float = PATIENCE_S) -> list[Event]:
    events: list[Event] = []

    def look() -> bool:
        events.extend(poll())
        return len(events) >= count

    until(look, patience_s)
    return events


@pytest.fixture
def shared() -> SharedPool:
    return SharedPool()


@pytest.fixture
def receiver(shared: SharedPool) -> Iterator[PairsReceiver]:
    receiver = open_ipc_receiver(shared.pool, lambda: None, mapper=MemfdMapper(shared))
    yield receiver
    receiver.close()


# Connections.


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    left, right = (Connection(end) for end in socket.socketpair())
    yield left, right
    left.close()
    right.close()


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 18) + 1, 5 << 20])
def test_messages_of_all_sizes(ends: tuple[Connection, Connection], size: int) -> None:
    payloads = [os.urandom(size), b"next"]
    for payload in payloads:
        ends[0].send(payload)
    got: list[bytes] = []

    def look() -> bool:
        ends[0].flush()
        message = ends[1].receive(0.0)
        if message is not None:
            got.append(message)
        return len(got) == 2

    until(look)
    assert got == payloads


def test_sending_never_blocks_and_goes_on_when_there_is_room(ends: tuple[Connection, Connection]) -> None:
    for n in range(100):
        ends[0].send(bytes([n]) * 100_000)
    assert not ends[0].flush()
    for n in range(100):
        ends[0].flush()
        assert ends[1].receive(PATIENCE_S) == bytes([n]) * 100_000
    assert ends[0].flush()


def test_the_other_end_goes_away(ends: tuple[Connection, Connection]) -> None:
    assert not ends[1].hung_up(0.0)
    ends[0].send(b"last word")
    ends[0].close()
    assert ends[1].hung_up(PATIENCE_S)
    assert ends[1].receive(PATIENCE_S) == b"last word"
    with pytest.raises(Lost, match="gone"):
        ends[1].receive(PATIENCE_S)
    ends[1].send(b"nobody hears this")


def test_a_length_that_is_none() -> None:
    plain, other = socket.socketpair()
    with plain, closing(Connection(other)) as connection:
        plain.send((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"))
        with pytest.raises(Lost, match=str(MAX_MESSAGE_BYTES + 1)):
            connection.receive(PATIENCE_S)


def test_waiting_ends_when_woken_or_when_the_time_is_over(ends: tuple[Connection, Connection]) -> None:
    read, write = socket.socketpair()
    with read, write:
        assert ends[0].receive(0.01, wake=read.fileno()) is None
        write.send(b"\0")
        assert ends[0].receive(None, wake=read.fileno()) is None


# A strange sender.


class Stranger:
    """Says to a receiver what a test wants."""

    def __init__(self, receiver: PairsReceiver):
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(cuda_ipc._address(receiver.endpoint))
        self.connection = Connection(stream)
        self._receiver = receiver
        self.events: list[Event] = []
        assert self.connection.receive(PATIENCE_S) is not None  # the offer

    def __enter__(self) -> "Stranger":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def say(self, message: object) -> None:
        self.connection.send(encode(message))

    def hear(self) -> object:
        answers: list[bytes] = []

        def look() -> bool:
            self.events += self._receiver.poll()
            answer = self.connection.receive(0.001)
            if answer is not None:
                answers.append(answer)
            return bool(answers)

        until(look)
        return decode_for_sender(answers[0])

    def look_for_a_while(self) -> list[Event]:
        for _ in range(50):
            self.events += self._receiver.poll()
            time.sleep(0.001)
        return self.events


def store(first_block: int, num_blocks: int, payload: memoryview) -> None:
    raise AssertionError


def test_only_the_first_to_claim_is_granted(receiver: PairsReceiver) -> None:
    receiver.register("t", 2, store, PoolBlocks([3, 4]))
    with Stranger(receiver) as first, Stranger(receiver) as second:
        first.say(Claim("t"))
        assert first.hear() == Granted("t", (3, 4))
        second.say(Claim("t"))
        assert second.hear() == Refused("t")
        second.say(Landed(KvPiece("t", 0, 2, 1, ())))
        second.say(Drained("t"))
        assert second.look_for_a_while() == []
        first.say(Landed(KvPiece("t", 0, 2, 1, ())))
        assert collect(receiver.poll, 1) == [Done("t", 2 * BLOCK)]


def test_a_claim_that_the_owner_refuses(receiver: PairsReceiver) -> None:
    receiver.register("t", 1, store, PoolBlocks([3], lambda: False))
    with Stranger(receiver) as stranger:
        stranger.say(Claim("t"))
        assert stranger.hear() == Refused("t")
    receiver.abandon("t")
    assert receiver.num_quarantined == 0


def test_quarantine_lasts_until_the_writer_says_so(receiver: PairsReceiver) -> None:
    receiver.register("t", 1, store, PoolBlocks([3]))
    with Stranger(receiver) as stranger:
        stranger.say(Claim("t"))
        stranger.hear()
        receiver.abandon("t")
        assert stranger.hear() == Revoke("t")
        stranger.say(Landed(KvPiece("t", 0, 1, 1, ())))
        assert stranger.look_for_a_while() == []
        assert receiver.num_quarantined == 1
        stranger.say(Drained("t"))
        assert collect(receiver.poll, 1) == [Released("t")]


@pytest.mark.parametrize("nonsense", [b"\xc1", encode(Refused("t")), b""])
def test_nonsense_ends_the_pair_and_what_it_had_claimed(
    shared: SharedPool, caplog: pytest.LogCaptureFixture, nonsense: bytes
) -> None:
    now = [0.0]
    receiver = open_ipc_receiver(shared.pool, lambda: None, mapper=MemfdMapper(shared), clock=lambda: now[0])
    receiver.register("t", 1, store, PoolBlocks([3]))
    receiver.register("other", 1, store, PoolBlocks([4]))
    with Stranger(receiver) as stranger:
        stranger.say(Claim("t"))
        stranger.hear()
        stranger.connection.send(nonsense)
        assert collect(receiver.poll, 1) == [Failed("t", "its sender is gone")]
    assert "dropping a sender" in caplog.text
    assert receiver.poll() == []
    now[0] += IpcPeer.grace_s
    assert receiver.poll() == [Released("t")]
    receiver.close()


def test_block_ids_are_needed(receiver: PairsReceiver) -> None:
    with pytest.raises(ValueError, match="0 block ids"):
        receiver.register("t", 1, store)


# A strange receiver.


def test_a_receiver_that_answers_nothing_is_given_up(receiver: PairsReceiver) -> None:
    mapper, sources = MemfdMapper(), SharedPool()
    sender = open_ipc_sender(sources.pool, mapper=mapper, stalled_s=0.2)
    for name in ("t", "t2"):
        sender.send(name, receiver.endpoint, PoolSource(name, sources).piece(0, 1, True))
    events = collect(sender.poll, 2)  # nobody polls the receiver
    assert all(isinstance(event, Failed) and "answered nothing" in event.error for event in events)
    assert sender.idle
    until(lambda: not mapper.num_open)
    sender.close()


def test_a_dead_receivers_pool_does_not_stay_mapped(shared: SharedPool) -> None:
    mapper, sources = MemfdMapper(), SharedPool()
    sender = open_ipc_sender(sources.pool, mapper=mapper)
    for life in range(3):
        receiver = open_ipc_receiver(shared.pool, lambda: None, mapper=MemfdMapper(shared))
        receiver.register(f"t{life}", 1, store, PoolBlocks([life]))
        sender.send(f"t{life}", receiver.endpoint, PoolSource(f"t{life}", sources).piece(0, 1, True))
        assert [type(event) for event in collect(receiver.poll, 1)] == [Done]
        assert mapper.num_open == 1
        receiver.close()
        if life:
            until(lambda: not mapper.num_open)  # without anything being sent
    sender.close()
    assert mapper.num_open == 0


def other_dtype() -> DevicePool:
    return DevicePool(SharedPool().pool.kv.view(torch.int32))


def other_shape() -> DevicePool:
    return DevicePool(SharedPool().pool.kv.view(4, -1, 1, 2, 4, 16))


@pytest.mark.parametrize("make_pool", [other_dtype, other_shape])
@pytest.mark.parametrize("transport", ["cuda_ipc", "nccl"])
@pytest.mark.parametrize("prepared", [False, True])
def test_pools_that_do_not_fit_use_another_way(
    shared: SharedPool, transport: str, make_pool: Callable[[], DevicePool], prepared: bool
) -> None:
    pool = make_pool()
    by_tcp, target = ZmqReceiver(lambda: None), Target("t", 2)
    by_tcp.register("t", 2, target.store)
    if transport == "cuda_ipc":
        receiver = open_ipc_receiver(shared.pool, lambda: None, mapper=MemfdMapper(shared))
        sender = AnySender({transport: open_ipc_sender(pool, mapper=MemfdMapper()), "tcp": ZmqSender()})
    else:
        receiver = open_nccl_receiver(shared.pool, lambda: None)
        sender = AnySender({transport: open_nccl_sender(pool), "tcp": ZmqSender()})
    endpoint = f"{receiver.endpoint};{by_tcp.endpoint}"
    if prepared:
        sender.prepare("t", endpoint)
        until(lambda: sender.poll() or sender._transfers["t"].endpoint == by_tcp.endpoint)
    sender.send("t", endpoint, Source("t").piece(0, 2, True))
    assert [type(event) for event in collect(sender.poll, 1)] == [Done]
    until(lambda: by_tcp.poll() or target.whole)
    assert target.whole
    for each in (sender, receiver, by_tcp):
        each.close()


def test_what_cannot_be_prepared_for_has_failed(shared: SharedPool) -> None:
    sender = AnySender({"cuda_ipc": open_ipc_sender(shared.pool, mapper=MemfdMapper())})
    sender.prepare("t", "cuda_ipc:nobody")
    (event,) = collect(sender.poll, 1)
    assert isinstance(event, Failed)
    assert sender.idle
    sender.close()


def test_another_hosts_pool_is_not_reached(receiver: PairsReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_ipc, "boot_id", lambda: "elsewhere")
    sources = SharedPool()
    sender = open_ipc_sender(sources.pool, mapper=MemfdMapper())
    sender.send("t", receiver.endpoint, PoolSource("t", sources).piece(0, 1))
    (event,) = collect(sender.poll, 1)
    assert isinstance(event, Failed)
    assert event.unreachable
    assert "another host" in event.error
    sender.close()


def test_abandoning_waits_while_the_blocks_are_read(receiver: PairsReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class SlowMover(BlockMover):
        def store(self, *arguments, **options):
            begun.set()
            assert go_on.wait(PATIENCE_S)
            super().store(*arguments, **options)

    monkeypatch.setattr(cuda_ipc, "BlockMover", SlowMover)
    sources = SharedPool()
    sender = open_ipc_sender(sources.pool, mapper=MemfdMapper())
    receiver.register("t", 1, store, PoolBlocks([5]))
    sender.send("t", receiver.endpoint, PoolSource("t", sources).piece(0, 1))
    until(lambda: receiver.poll() or begun.is_set())
    abandoned = threading.Thread(target=sender.abandon, args=("t",))
    abandoned.start()
    abandoned.join(0.05)
    assert abandoned.is_alive()
    go_on.set()
    abandoned.join(PATIENCE_S)
    assert not abandoned.is_alive()
    assert sender.idle
    sender.close()


# Opening.


def test_a_handle_of_another_size_is_refused() -> None:
    with pytest.raises(DeviceMemoryError, match="a handle of 5 bytes"):
        CudaMapper().open(b"short", torch.device("cuda:0"))


def test_transports_between_devices_need_a_pool() -> None:
    with pytest.raises(ValueError, match="none of cuda_ipc, nccl works here"):
        open_receiver(lambda: None, transports=["cuda_ipc", "nccl"])


def test_a_pool_opens_every_transport_that_works(shared: SharedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(memory: torch.Tensor) -> tuple[bytes, int]:
        raise DeviceMemoryError("cuIpcGetMemHandle: CUDA_ERROR_INVALID_VALUE")

    monkeypatch.setattr(CudaMapper, "export", staticmethod(refuse))
    receiver = open_receiver(lambda: None, pool=shared.pool)
    assert [one.partition(":")[0] for one in receiver.endpoint.split(";")] == ["nccl", "shm", "tcp"]
    receiver.close()


def test_only_engines_with_a_pool_on_a_gpu_have_one() -> None:
    class OnCpu:
        kv = torch.zeros(1, 1, 1, 2, 4, 4)

    assert pool_of(object()) is None
    assert pool_of(OnCpu()) is None


# A pair whose other end hangs.


def test_a_sender_that_hangs_in_the_middle_of_a_send_is_given_up(shared: SharedPool) -> None:
    receiver = open_nccl_receiver(shared.pool, lambda: None, stalled_s=0.5)
    receiver.register("t", 20, store, PoolBlocks(shared.allocate(20)))
    receiver.register("untouched", 1, store, PoolBlocks(shared.allocate(1)))
    command = [sys.executable, "-m", "isthmus.tests.kvtransfer.child", "send", receiver.endpoint, "t", "20"]
    process = subprocess.Popen(
        [*command, str(int(signal.SIGSTOP)), "sending"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        try:
            events = collect(receiver.poll, 2, patience_s=20)
            assert events == [Failed("t", "its sender is gone"), Released("t")]
            process.send_signal(signal.SIGCONT)
            assert process.stdout.readline() == "Failed\n"
        finally:
            process.kill()
    receiver.close()
