import time
from collections.abc import Callable, Iterator

import pytest
import zmq
from isthmus.kvtransfer.transport import Done, Failed, Piece
from isthmus.kvtransfer.zmq_transport import ZmqReceiver, ZmqSender
from isthmus.wire.codec import encode
from isthmus.wire.messages import KvPiece

BLOCK = 64


class Pool:
    """Blocks of BLOCK bytes, and what was put where."""

    def __init__(self, num_blocks: int):
        self.blocks = [b""] * num_blocks

    def store(self, first_block: int, num_blocks: int, payload: memoryview) -> None:
        if len(payload) != num_blocks * BLOCK:
            raise ValueError(f"{len(payload)} bytes for {num_blocks} blocks")
        for i in range(num_blocks):
            assert self.blocks[first_block + i] == b"", "stored twice"
            self.blocks[first_block + i] = bytes(payload[i * BLOCK : (i + 1) * BLOCK])


def content(block: int) -> bytes:
    return bytes([block % 256]) * BLOCK


def piece(first: int, num: int, last: bool = False, tail: bytes | None = None) -> Piece:
    payload = b"".join(content(block) for block in range(first, first + num))
    return Piece(first, num, memoryview(payload), last, {} if tail is None else {"logits": memoryview(tail)})


@pytest.fixture
def receiver() -> Iterator[ZmqReceiver]:
    receiver = ZmqReceiver(lambda: None)
    yield receiver
    receiver.close()


@pytest.fixture
def sender() -> Iterator[ZmqSender]:
    sender = ZmqSender()
    yield sender
    sender.close()


def pump(receiver: ZmqReceiver, sender: ZmqSender, count: int = 1) -> tuple[list[Done | Failed], list[Done | Failed]]:
    """What each end reports, until both have reported `count` or 5 s have passed."""
    received: list[Done | Failed] = []
    sent: list[Done | Failed] = []
    deadline = time.monotonic() + 5
    while min(len(received), len(sent)) < count and time.monotonic() < deadline:
        received += receiver.poll()
        sent += sender.poll()
        time.sleep(0.001)
    return received, sent


def wait_for_arrivals(receiver: ZmqReceiver, count: int) -> None:
    deadline = time.monotonic() + 5
    while receiver.num_arrived < count and time.monotonic() < deadline:
        time.sleep(0.001)


def test_pieces_and_tail_arrive_whole(receiver: ZmqReceiver, sender: ZmqSender) -> None:
    pool = Pool(5)
    receiver.register("t", 5, pool.store)
    sender.send("t", receiver.endpoint, piece(0, 2))
    sender.send("t", receiver.endpoint, piece(2, 2))
    sender.send("t", receiver.endpoint, piece(4, 1, last=True, tail=b"logits"))
    (done,), sent = pump(receiver, sender)
    assert isinstance(done, Done)
    assert (done.transfer_id, done.num_bytes) == ("t", 5 * BLOCK + 6)
    assert bytes(done.tail["logits"]) == b"logits"
    assert pool.blocks == [content(block) for block in range(5)]
    assert sent == [Done("t", 5 * BLOCK + 6)]
    assert sender.idle
    assert receiver.poll() == []


def test_many_transfers_of_many_sizes_at_once(receiver: ZmqReceiver, sender: ZmqSender) -> None:
    pools = {f"t{n}": Pool(n) for n in range(1, 60)}
    for n, (name, pool) in enumerate(pools.items(), start=1):
        receiver.register(name, n, pool.store)
    for n, name in enumerate(pools, start=1):
        for first in range(0, n, 7):
            sender.send(name, receiver.endpoint, piece(first, min(7, n - first), last=first + 7 >= n))
    received, sent = pump(receiver, sender, len(pools))
    assert {event.transfer_id for event in sent if isinstance(event, Done)} == set(pools)
    assert {event.transfer_id for event in received if isinstance(event, Done)} == set(pools)
    for pool in pools.values():
        assert pool.blocks == [content(block) for block in range(len(pool.blocks))]


def test_the_receiver_is_woken() -> None:
    woken: list[int] = []
    receiver, sender = ZmqReceiver(lambda: woken.append(1)), ZmqSender()
    receiver.register("t", 1, Pool(1).store)
    sender.send("t", receiver.endpoint, piece(0, 1, last=True))
    pump(receiver, sender)
    sender.close()
    receiver.close()
    assert woken


def test_nothing_is_stored_after_abandon(receiver: ZmqReceiver, sender: ZmqSender) -> None:
    pool, other = Pool(2), Pool(1)
    receiver.register("t", 2, pool.store)
    receiver.register("other", 1, other.store)
    sender.send("t", receiver.endpoint, piece(0, 1))
    receiver.abandon("t")
    sender.send("t", receiver.endpoint, piece(1, 1, last=True))
    sender.send("other", receiver.endpoint, piece(0, 1, last=True))
    received, _ = pump(receiver, sender, 1)
    assert [event.transfer_id for event in received] == ["other"]
    assert pool.blocks == [b"", b""]


def test_an_abandoned_send_is_not_reported(receiver: ZmqReceiver, sender: ZmqSender) -> None:
    sender.send("t", receiver.endpoint, piece(0, 1))
    sender.abandon("t")
    sender.abandon("unknown")
    assert sender.idle
    assert sender.poll() == []


@pytest.mark.parametrize(
    ("pieces", "complaint"),
    [
        ([piece(0, 3, last=True)], "a transfer of 2"),
        ([piece(0, 1, last=True)], "1 of 2 blocks came"),
        ([piece(0, 1), piece(0, 1, last=True)], "came twice"),
        ([Piece(0, 2, memoryview(b"short"), True)], "5 bytes for 2 blocks"),
    ],
)
def test_a_transfer_that_does_not_fit_fails(
    receiver: ZmqReceiver, sender: ZmqSender, pieces: list[Piece], complaint: str
) -> None:
    receiver.register("t", 2, Pool(2).store)
    for part in pieces:
        sender.send("t", receiver.endpoint, part)
    (event,), _ = pump(receiver, sender)
    assert isinstance(event, Failed)
    assert complaint in event.error


def test_garbage_is_dropped(receiver: ZmqReceiver, sender: ZmqSender, caplog: pytest.LogCaptureFixture) -> None:
    receiver.register("t", 1, Pool(1).store)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(receiver.endpoint)
        push.send(b"\xc1 garbage")
        push.send_multipart([encode(KvPiece("unknown", 0, 1, 1)), b"x"])
        wait_for_arrivals(receiver, 2)
        sender.send("t", receiver.endpoint, piece(0, 1, last=True))
        received, _ = pump(receiver, sender)
    assert [type(event) for event in received] == [Done]
    assert "dropping a KV piece" in caplog.text


def test_announced_tail_frames_must_come(receiver: ZmqReceiver) -> None:
    receiver.register("t", 1, Pool(1).store)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(receiver.endpoint)
        push.send_multipart([encode(KvPiece("t", 0, 1, 1, ("logits",))), content(0)])
        wait_for_arrivals(receiver, 1)
        (event,) = receiver.poll()
    assert isinstance(event, Failed)
    assert "2 frames where 3" in event.error


def make_clock() -> tuple[Callable[[], float], Callable[[float], None]]:
    time_s = [0.0]

    def advance(seconds: float) -> None:
        time_s[0] += seconds

    return (lambda: time_s[0]), advance


def test_a_receiver_that_is_not_there_fails_the_transfer_once() -> None:
    clock, advance = make_clock()
    sender = ZmqSender(stalled_s=5, clock=clock)
    sender.send("a", "tcp://127.0.0.1:9", piece(0, 1, last=True))
    sender.send("b", "tcp://127.0.0.1:9", piece(0, 1))
    advance(4)
    assert sender.poll() == []
    advance(2)
    events = sender.poll()
    assert [event.transfer_id for event in events] == ["a", "b"]
    assert all(isinstance(event, Failed) and "took nothing for 5 s" in event.error for event in events)
    assert sender.idle
    sender.close()
