"""What every transport must do, and every way of putting them together."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import pytest
from isthmus.kvtransfer import nccl
from isthmus.kvtransfer.any_sender import AnySender
from isthmus.kvtransfer.cuda_ipc import GRACE_S, open_ipc_receiver, open_ipc_sender
from isthmus.kvtransfer.device_pool import DevicePool
from isthmus.kvtransfer.faulty import FaultyReceiver, FaultySender
from isthmus.kvtransfer.leased_receiver import LeasedReceiver
from isthmus.kvtransfer.loopback import LoopbackReceiver, LoopbackSender
from isthmus.kvtransfer.nccl import open_nccl_receiver, open_nccl_sender
from isthmus.kvtransfer.shm_receiver import ShmReceiver
from isthmus.kvtransfer.shm_sender import ShmSender
from isthmus.kvtransfer.transport import (
    NO_BLOCKS,
    Done,
    Event,
    Failed,
    Piece,
    PoolBlocks,
    Receiver,
    Released,
    Sender,
)
from isthmus.kvtransfer.zmq_transport import ZmqReceiver, ZmqSender
from isthmus.tests.kvtransfer.blocks import BLOCK, Source, Target
from isthmus.tests.kvtransfer.pools import MemfdMapper, PoolSource, PoolTarget, SharedPool

PATIENCE_S = 20.0
LEASE_S = 100.0
"""Of a clock that a test moves on."""
SEGMENT_BYTES = 64 * BLOCK
TAIL = {"logits": b"l" * 4000, "hidden": b"h"}


Clock = Callable[[], float]


@dataclass(frozen=True)
class Backend:
    receiver: Callable[[SharedPool, Clock], Receiver]
    sender: Callable[[DevicePool, Clock], Sender]
    pooled: bool = False
    """It works on pools, which the other backends leave alone."""


def shm_receiver(*_: object) -> Receiver:
    return ShmReceiver(lambda: None, segment_bytes=SEGMENT_BYTES)


def zmq_receiver(*_: object) -> Receiver:
    return ZmqReceiver(lambda: None)


def ipc_receiver(shared: SharedPool, clock: Clock) -> Receiver:
    return open_ipc_receiver(shared.pool, lambda: None, mapper=MemfdMapper(shared), clock=clock)


def nccl_receiver(shared: SharedPool, clock: Clock) -> Receiver:
    return open_nccl_receiver(shared.pool, lambda: None, clock=clock)


def shm_sender(*_: object) -> Sender:
    return ShmSender()


def zmq_sender(_: DevicePool, clock: Clock) -> Sender:
    return ZmqSender(clock=clock)


def ipc_sender(pool: DevicePool, _: Clock) -> Sender:
    return open_ipc_sender(pool, mapper=MemfdMapper())


def nccl_sender(pool: DevicePool, _: Clock) -> Sender:
    return open_nccl_sender(pool)


def any_sender(pool: DevicePool, clock: Clock) -> Sender:
    makers: dict[str, Callable[[DevicePool, Clock], Sender]]
    makers = {"cuda_ipc": ipc_sender, "nccl": nccl_sender, "shm": shm_sender, "tcp": zmq_sender}
    return AnySender({way: make(pool, clock) for way, make in makers.items()})


def faulty(backend: Backend) -> Backend:
    return Backend(
        lambda shared, clock: FaultyReceiver(backend.receiver(shared, clock)),
        lambda pool, clock: FaultySender(lambda: backend.sender(pool, clock)),
        backend.pooled,
    )


LOOPBACK = Backend(lambda *_: LoopbackReceiver(), lambda *_: LoopbackSender())
ZMQ = Backend(zmq_receiver, zmq_sender)
SHM = Backend(shm_receiver, shm_sender)
IPC = Backend(ipc_receiver, ipc_sender, pooled=True)
NCCL = Backend(nccl_receiver, nccl_sender, pooled=True)

BACKENDS = {
    "loopback": LOOPBACK,
    "zmq": ZMQ,
    "shm": SHM,
    "cuda_ipc": IPC,
    "nccl": NCCL,
    "shm of any": Backend(shm_receiver, any_sender),
    "zmq of any": Backend(zmq_receiver, any_sender),
    "cuda_ipc of any": Backend(ipc_receiver, any_sender, pooled=True),
    "nccl of any": Backend(nccl_receiver, any_sender, pooled=True),
    "faulty loopback": faulty(LOOPBACK),
    "faulty zmq": faulty(ZMQ),
    "faulty shm": faulty(SHM),
    "faulty cuda_ipc": faulty(IPC),
}


@dataclass
class End:
    """One end, and what it reported: twice is an error."""

    poll: Callable[[], Sequence[Event]]
    close: Callable[[], None]
    ended: dict[str, Done | Failed] = field(default_factory=dict)
    parts: dict[str, Source | Target | PoolTarget] = field(default_factory=dict)
    open: bool = True

    def look(self) -> None:
        for event in self.poll() if self.open else []:
            part = self.parts[event.transfer_id]
            if isinstance(event, Released):
                assert isinstance(part, PoolTarget)
                part.release()
                continue
            assert event.transfer_id not in self.ended, "reported twice"
            self.ended[event.transfer_id] = event
            if isinstance(part, PoolTarget):
                part.done = isinstance(event, Done)
            part.gone = True

    def shut(self) -> None:
        if self.open:
            self.close()
        self.open = False


class Line:
    """A receiver, and any number of senders."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self.now = 0.0
        """The receiver's."""
        self.senders_now = 0.0
        self.pool, self.source_pool = SharedPool(), SharedPool()
        self.open_receiver()
        self.targets: dict[str, Target | PoolTarget] = {}
        self.senders: list[Sender] = []
        self.outgoing: list[End] = []
        self.add_sender()

    def open_receiver(self) -> None:
        def clock() -> float:
            return self.now

        self.receiver = LeasedReceiver([self._backend.receiver(self.pool, clock)], lease_s=LEASE_S, clock=clock)
        self.endpoint = self.receiver.endpoint
        self.incoming = End(self.receiver.poll, self.receiver.close)

    def add_sender(self) -> int:
        sender = self._backend.sender(self.source_pool.pool, lambda: self.senders_now)
        self.senders.append(sender)
        self.outgoing.append(End(sender.poll, sender.close))
        return len(self.senders) - 1

    def register(self, transfer_id: str, num_blocks: int) -> Target | PoolTarget:
        target: Target | PoolTarget
        if self._backend.pooled:
            target = PoolTarget(transfer_id, self.pool, self.pool.allocate(num_blocks))
            blocks = PoolBlocks(target.block_ids, target.claim)
        else:
            target, blocks = Target(transfer_id, num_blocks), NO_BLOCKS
        self.targets[transfer_id] = self.incoming.parts[transfer_id] = target
        self.receiver.register(transfer_id, num_blocks, target.store, blocks)
        return target

    def send(self, transfer_id: str, *pieces: Piece, sender: int = 0) -> None:
        for piece in pieces:
            self.senders[sender].send(transfer_id, self.endpoint, piece)

    def source(self, transfer_id: str, sender: int = 0) -> Source:
        source = PoolSource(transfer_id, self.source_pool) if self._backend.pooled else Source(transfer_id)
        self.outgoing[sender].parts[transfer_id] = source
        return source

    def transfer(self, transfer_id: str, num_blocks: int, sender: int = 0) -> Target | PoolTarget:
        target = self.register(transfer_id, num_blocks)
        self.send(transfer_id, self.source(transfer_id, sender).piece(0, num_blocks, True), sender=sender)
        return target

    def look(self) -> None:
        for end in (self.incoming, *self.outgoing):
            end.look()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {self.incoming.ended}, {self.outgoing[0].ended}"
            self.look()
            time.sleep(0.0005)

    def until_ended(self, *transfer_ids: str, sender: int | None = 0) -> None:
        """At both ends; `sender` None: at the receiver alone."""
        ends = [self.incoming] if sender is None else [self.incoming, self.outgoing[sender]]
        self.until(lambda: all(transfer_id in end.ended for end in ends for transfer_id in transfer_ids))

    def until_given_up(self, *transfer_ids: str) -> None:
        """For the sender, time flies: it waits in vain for a receiver that is gone."""

        def given_up() -> bool:
            self.senders_now += 1.0
            return self.outgoing[0].ended.keys() == set(transfer_ids)

        self.until(given_up)

    def settle(self, sender: int = 0) -> None:
        """Everything that was sent has arrived: a transfer that came after it has."""
        transfer_id = f"probe {time.monotonic_ns()}"
        target = self.transfer(transfer_id, 1, sender)
        self.until_ended(transfer_id, sender=sender)
        assert target.whole

    @property
    def quarantined(self) -> list[str]:
        """Transfers that have ended, whose blocks must not be used yet."""
        targets = [target for target in self.targets.values() if isinstance(target, PoolTarget)]
        return [target.transfer_id for target in targets if target.gone and target.claimed and not target.done]

    def close(self) -> None:
        """Nothing is left in quarantine, unless the receiver is gone, and nothing was written that must not be."""
        for end in self.outgoing:
            end.shut()
        if self.incoming.open:
            self.look()
            self.now += GRACE_S
            self.until(lambda: not self.quarantined)
        self.incoming.shut()
        self.pool.check()

    def failed(self, transfer_id: str) -> str:
        event = self.incoming.ended[transfer_id]
        assert isinstance(event, Failed), event
        return event.error


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "SLICE_BYTES", 40 * BLOCK)


@pytest.fixture(params=BACKENDS)
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    line = Line(BACKENDS[request.param])
    yield line
    line.close()


def pieces_of(source: Source, sizes: list[int]) -> list[Piece]:
    pieces, first = [], 0
    for index, size in enumerate(sizes):
        last = index + 1 == len(sizes)
        pieces.append(source.piece(first, size, last, TAIL if last else None))
        first += size
    return pieces


@pytest.mark.parametrize("sizes", [[1], [3, 1, 7], [1] * 40, [200], [150] * 20, [90, 0, 17], [0]], ids=str)
def test_pieces_of_all_sizes_arrive_whole_with_their_tail(line: Line, sizes: list[int]) -> None:
    target = line.register("t", sum(sizes))
    line.send("t", *pieces_of(line.source("t"), sizes))
    line.until_ended("t")
    num_bytes = sum(sizes) * BLOCK + 4001
    assert line.outgoing[0].ended["t"] == Done("t", num_bytes)
    done = line.incoming.ended["t"]
    assert isinstance(done, Done)
    assert done.num_bytes == num_bytes
    line.settle()
    assert target.whole
    assert {name: bytes(tensor) for name, tensor in done.tail.items()} == TAIL
    assert line.senders[0].idle


def test_many_at_once_interleaved(line: Line) -> None:
    rng = random.Random(3)
    queues = {}
    for n in range(60):
        sizes = [rng.randint(1, 9) for _ in range(rng.randint(1, 6))]
        line.register(f"t{n}", sum(sizes))
        if n % 2:
            line.senders[0].prepare(f"t{n}", line.endpoint)
        queues[f"t{n}"] = pieces_of(line.source(f"t{n}"), sizes)
    while queues:
        transfer_id = rng.choice(list(queues))
        line.send(transfer_id, queues[transfer_id].pop(0))
        if not queues[transfer_id]:
            del queues[transfer_id]
        if rng.random() < 0.2:
            line.look()
    line.until_ended(*line.targets)
    assert all(isinstance(event, Done) for event in line.incoming.ended.values())
    assert all(target.whole for target in line.targets.values())


def test_two_senders_and_one_that_leaves(line: Line) -> None:
    other = line.add_sender()
    for n in range(20):
        line.transfer(f"t{n}", 1 + n, sender=n % 2)
    line.until_ended(*(f"t{n}" for n in range(0, 20, 2)))
    line.until_ended(*(f"t{n}" for n in range(1, 20, 2)), sender=other)
    line.outgoing[other].shut()
    line.settle()
    assert all(target.whole for target in line.targets.values())


@pytest.mark.parametrize("num_sent", range(4))
def test_abandoned_by_the_receiver_after_any_piece(line: Line, num_sent: int) -> None:
    target = line.register("t", 9)
    pieces = pieces_of(line.source("t"), [3, 3, 3])
    line.send("t", *pieces[:num_sent])
    for _ in range(num_sent):
        line.look()
    if "t" in line.incoming.ended:
        return  # all of it was there already
    line.receiver.abandon("t")
    target.gone = True
    line.send("t", *pieces[num_sent:])
    line.settle()
    line.until(lambda: "t" in line.outgoing[0].ended)
    assert "t" not in line.incoming.ended


@pytest.mark.parametrize("num_sent", range(3))
def test_abandoned_by_the_sender_after_any_piece(line: Line, num_sent: int) -> None:
    line.register("t", 300)
    source = line.source("t")
    line.send("t", *pieces_of(source, [100, 100, 100])[:num_sent])
    line.senders[0].abandon("t")
    source.gone = True
    assert line.senders[0].idle
    line.settle()
    assert "t" not in line.outgoing[0].ended
    assert "t" not in line.incoming.ended
    line.now += LEASE_S
    line.until_ended("t", sender=None)
    assert line.failed("t") == "lease expired"
    line.settle()


@pytest.mark.parametrize("looks", [0, 50])
def test_prepared_and_then_abandoned(line: Line, looks: int) -> None:
    for transfer_id in ("t", "t2"):
        line.register(transfer_id, 3)
        line.source(transfer_id)
        line.senders[0].prepare(transfer_id, line.endpoint)
    for _ in range(looks):
        line.look()
        time.sleep(0.001)
    line.senders[0].abandon("t")
    line.receiver.abandon("t2")
    line.targets["t2"].gone = True
    line.senders[0].abandon("t2")
    assert line.senders[0].idle
    line.settle()
    assert not line.incoming.ended.keys() & {"t", "t2"}
    assert not line.outgoing[0].ended.keys() & {"t", "t2"}
    line.now += LEASE_S
    line.until_ended("t", sender=None)


def test_unknown_transfers_can_be_abandoned(line: Line) -> None:
    line.receiver.abandon("t")
    line.senders[0].abandon("t")
    line.settle()


def test_what_is_not_registered_is_dropped(line: Line) -> None:
    line.send("t", *pieces_of(line.source("t"), [100, 1]))
    line.settle()
    line.until(lambda: "t" in line.outgoing[0].ended)
    line.transfer("t2", 3)
    line.until_ended("t2")
    assert line.targets["t2"].whole
    assert "t" not in line.incoming.ended


@pytest.mark.parametrize(
    ("pieces", "complaint"),
    [
        (lambda source: [source.piece(0, 3, True)], "a transfer of 2"),
        (lambda source: [source.piece(0, 1, True)], "1 of 2 blocks came"),
        (lambda source: [source.piece(0, 1), source.piece(0, 1, True)], "came twice"),
        (lambda source: [Piece(0, 2, 5, lambda first, num, out: half(num, out), True)], "10 bytes for 2 blocks"),
    ],
    ids=["too much", "too little", "twice", "another block size"],
)
def test_what_does_not_fit_fails(line: Line, pieces: Callable[[Source], list[Piece]], complaint: str) -> None:
    line.register("t", 2)
    line.send("t", *pieces(line.source("t")))
    line.until_ended("t")
    assert complaint in line.failed("t")
    line.settle()


def half(num_blocks: int, out: memoryview | None) -> memoryview:
    payload = memoryview(b"short" * num_blocks)
    if out is not None:
        out[:] = payload
    return payload


def test_only_leases_that_are_renewed_live_on(line: Line) -> None:
    for transfer_id in ("kept", "left"):
        line.register(transfer_id, 2)
        line.send(transfer_id, line.source(transfer_id).piece(0, 1))
    for _ in range(4):
        line.now += LEASE_S / 2
        line.receiver.renew(["kept", "unknown"])
        line.look()
    assert list(line.incoming.ended) == ["left"]
    assert line.receiver.num_expired == 1
    for transfer_id in ("kept", "left"):
        source = line.outgoing[0].parts[transfer_id]
        assert isinstance(source, Source)
        line.send(transfer_id, source.piece(1, 1, True))
    line.until(lambda: len(line.outgoing[0].ended) == 2)
    line.until_ended("kept")
    assert line.targets["kept"].whole
    assert line.targets["left"].blocks[1] is None
    line.now += 2 * LEASE_S
    line.settle()


def test_a_receiver_that_closes_ends_what_is_sent_to_it(line: Line) -> None:
    ids = [f"t{n}" for n in range(5)]
    for transfer_id in ids:
        line.register(transfer_id, 300)
        line.send(transfer_id, line.source(transfer_id).piece(0, 150))
    line.incoming.shut()
    for transfer_id in ids:
        if transfer_id not in line.outgoing[0].ended:
            source = line.outgoing[0].parts[transfer_id]
            assert isinstance(source, Source)
            line.send(transfer_id, source.piece(150, 150, True))
        line.outgoing[0].look()
    line.until_given_up(*ids)
    line.until(lambda: line.senders[0].idle)


def test_a_sender_that_closes_ends_what_it_sent_within_a_lease(line: Line) -> None:
    for n in range(3):
        line.register(f"t{n}", 20)
        line.send(f"t{n}", line.source(f"t{n}").piece(0, 10))
    line.look()
    line.outgoing[0].shut()
    line.now += LEASE_S
    line.until_ended("t0", "t1", "t2", sender=None)
    assert all(isinstance(event, Failed) for event in line.incoming.ended.values())
    other = line.add_sender()
    line.settle(other)


def test_a_receiver_that_started_over_takes_nothing_old(line: Line) -> None:
    line.register("t", 4)
    source = line.source("t")
    line.send("t", source.piece(0, 2))
    line.look()
    line.incoming.shut()
    old = line.endpoint
    line.open_receiver()
    assert line.endpoint != old
    if "t" not in line.outgoing[0].ended:
        line.senders[0].send("t", old, source.piece(2, 2, True))
    line.until_given_up("t")
    line.send("t again", line.source("t again").piece(0, 1, True))  # an id that only the old one knew
    line.settle()
    assert "t again" not in line.incoming.ended


def test_random_lives(line: Line) -> None:
    """Transfers are begun, cut off and abandoned in any order: whole or failed, once, and in the end all is quiet."""
    rng = random.Random(11)
    line.add_sender()
    unsent: dict[str, tuple[int, list[Piece]]] = {}
    for n in range(150):
        transfer_id, sender = f"t{n}", n % 2
        sizes = [rng.randint(1, 20) for _ in range(rng.randint(1, 4))]
        line.register(transfer_id, sum(sizes))
        unsent[transfer_id] = sender, pieces_of(line.source(transfer_id, sender), sizes)
        if rng.random() < 0.5:
            line.senders[sender].prepare(transfer_id, line.endpoint)
        for _ in range(rng.randint(0, 6)):
            step(line, rng, unsent)
    while unsent:
        step(line, rng, unsent)
    line.settle(0)
    line.settle(1)
    line.now += LEASE_S
    line.until(lambda: all(target.gone for target in line.targets.values()))
    line.until(lambda: all(sender.idle for sender in line.senders))
    for transfer_id, event in line.incoming.ended.items():
        assert isinstance(event, Failed) or line.targets[transfer_id].whole
    whole = [event for event in line.incoming.ended.values() if isinstance(event, Done)]
    assert len(whole) > 50


def step(line: Line, rng: random.Random, unsent: dict[str, tuple[int, list[Piece]]]) -> None:
    if not unsent:
        return
    transfer_id = rng.choice(list(unsent))
    sender, pieces = unsent[transfer_id]
    if transfer_id in line.outgoing[sender].ended:  # failed: nothing more is sent
        del unsent[transfer_id]
        return
    dice = rng.random()
    if dice < 0.05 and transfer_id not in line.incoming.ended:
        line.receiver.abandon(transfer_id)
        line.targets[transfer_id].gone = True
    elif dice < 0.1:
        line.senders[sender].abandon(transfer_id)
        line.outgoing[sender].parts[transfer_id].gone = True
        del unsent[transfer_id]
    else:
        line.send(transfer_id, pieces.pop(0), sender=sender)
        if not pieces:
            del unsent[transfer_id]
    if rng.random() < 0.3:
        line.look()


# Ends that are processes of their own.

REAL = {"zmq": ZMQ, "shm": SHM, "cuda_ipc": IPC, "nccl": NCCL}


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "isthmus.tests.kvtransfer.child", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("name", REAL)
def test_a_sender_killed_in_the_middle_of_a_piece(name: str) -> None:
    line = Line(REAL[name])
    target = line.register("t", 20)
    with child("send", line.endpoint, "t", "20", str(int(signal.SIGKILL))) as process:
        line.until(lambda: target.blocks[9] is not None)
        go_on(process)
        assert process.wait(10) == -signal.SIGKILL
        line.now += LEASE_S
        line.until_ended("t", sender=None)
    assert isinstance(line.incoming.ended["t"], Failed)
    assert None in target.blocks[10:]
    line.settle()
    line.close()


@pytest.mark.parametrize("name", REAL)
def test_a_sender_paused_past_its_lease_changes_no_byte_when_it_goes_on(name: str) -> None:
    line = Line(REAL[name])
    target = line.register("t", 20)
    with child("send", line.endpoint, "t", "20", str(int(signal.SIGSTOP))) as process:
        line.until(lambda: target.blocks[9] is not None)
        go_on(process)
        line.until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        line.now += LEASE_S
        line.until_ended("t", sender=None)
        assert line.failed("t") == "lease expired"
        line.until(lambda: line.quarantined == (["t"] if name == "cuda_ipc" else []))
        before = list(target.blocks)
        for n in range(10):  # what the blocks are used for meanwhile
            line.transfer(f"later{n}", 50)
            line.until_ended(f"later{n}")
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert process.stdout.readline() == "Done\n"
        line.settle()
        for _ in range(50):
            line.look()
            time.sleep(0.001)
    assert not line.quarantined
    assert target.blocks == before
    assert all(line.targets[f"later{n}"].whole for n in range(10))
    line.close()


@pytest.mark.parametrize("name", [name for name, backend in REAL.items() if backend.pooled])
@pytest.mark.parametrize("sending", [[], ["sending"]], ids=["reading", "sending"])
def test_a_sender_that_is_killed_harms_nobody_else(name: str, sending: list[str]) -> None:
    """Its transfers fail at once, without a lease that expires, and what it had claimed comes back."""
    line = Line(REAL[name])
    target = line.register("t", 20)
    line.settle()  # another pair
    with child("send", line.endpoint, "t", "20", str(int(signal.SIGKILL)), *sending) as process:
        line.until(lambda: target.blocks[9] is not None)
        line.register("untouched", 5)
        go_on(process)
        assert process.wait(10) == -signal.SIGKILL
        line.until_ended("t", sender=None)
    assert line.failed("t") == "its sender is gone"
    line.settle()
    line.now += GRACE_S
    line.until(lambda: not line.quarantined)
    assert line.incoming.ended.keys() & {"untouched"} == set()
    line.close()


@pytest.mark.parametrize("name", REAL)
def test_a_receiver_that_is_killed(name: str) -> None:
    line = Line(REAL[name])
    with child("receive", name) as process:
        assert process.stdout is not None
        line.endpoint = process.stdout.readline().strip()
        line.send("before", line.source("before").piece(0, 100))
        line.outgoing[0].look()
        process.kill()
        process.wait(10)
    if "before" not in line.outgoing[0].ended:
        source = line.outgoing[0].parts["before"]
        assert isinstance(source, Source)
        line.send("before", source.piece(100, 100, True))
    line.send("after", line.source("after").piece(0, 100, True))
    line.until_given_up("before", "after")
    line.until(lambda: line.senders[0].idle)
    assert isinstance(line.outgoing[0].ended["after"], Failed)
    line.close()
