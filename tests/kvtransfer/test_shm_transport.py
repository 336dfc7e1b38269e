"""What is particular to shared memory; the rest is in test_conformance.py."""

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from isthmus.kvtransfer import landing, shm_receiver, shm_sender
from isthmus.kvtransfer.landing import Landed, Segment, Taken, create_segment, encode, open_segment, socket_address
from isthmus.kvtransfer.shm_receiver import ShmReceiver
from isthmus.kvtransfer.shm_sender import ShmSender
from isthmus.kvtransfer.transport import Done, Event, Failed, Piece
from isthmus.tests.kvtransfer.blocks import BLOCK, Source, Target
from isthmus.wire.messages import KvPiece

SEGMENT_BYTES = 16 * BLOCK


@pytest.fixture
def receiver() -> Iterator[ShmReceiver]:
    receiver = ShmReceiver(lambda: None, segment_bytes=SEGMENT_BYTES)
    yield receiver
    receiver.close()


@pytest.fixture
def sender() -> Iterator[ShmSender]:
    sender = ShmSender(stalled_s=0.2)
    yield sender
    sender.close()


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def end_of(end: ShmReceiver | ShmSender) -> Event:
    deadline = time.monotonic() + 5
    while not (events := end.poll()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    (event,) = events
    return event


def connect(receiver: ShmReceiver) -> socket.socket:
    """As a sender whose segment has come."""
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    unix.connect(socket_address(receiver.endpoint))
    message, descriptors, _, _ = socket.recv_fds(unix, 1000, 1)
    assert message == encode(Segment(SEGMENT_BYTES))
    os.close(descriptors[0])
    return unix


def test_the_sender_waits_for_room_and_reads_no_block_before(receiver: ShmReceiver) -> None:
    source, target = Source("t"), Target("t", 100)
    num_read = [0]

    def read(first_block: int, num_blocks: int, out: memoryview | None) -> memoryview:
        assert out is not None
        num_read[0] += num_blocks
        return source.read(first_block, num_blocks, out)

    receiver.register("t", 100, target.store)
    sender = ShmSender()
    sender.send("t", receiver.endpoint, Piece(0, 100, BLOCK, read, True))
    wait(lambda: sender.poll() or receiver.num_arrived == 4)
    assert sender.poll() == []
    assert num_read == [16]
    deadline = time.monotonic() + 5
    while not (events := receiver.poll()):
        assert time.monotonic() < deadline
        sender.poll()
    assert events == [Done("t", 100 * BLOCK)]
    assert target.whole
    sender.close()


def test_a_receiver_that_takes_nothing_fails_its_transfers(receiver: ShmReceiver, sender: ShmSender) -> None:
    sender.send("t", receiver.endpoint, Source("t").piece(0, 17, True))
    event = end_of(sender)
    assert isinstance(event, Failed)
    assert "made no room for 0.2 s" in event.error
    assert not event.unreachable
    assert sender.idle


def test_what_fits_no_segment_needs_another_way(receiver: ShmReceiver, sender: ShmSender) -> None:
    source = Source("big")
    receiver.register("small", 1, Target("small", 1).store)
    sender.send("big", receiver.endpoint, source.piece(0, 1, True, {"logits": bytes(SEGMENT_BYTES)}))
    sender.send("small", receiver.endpoint, Source("small").piece(0, 1, True))
    events: dict[str, Done | Failed] = {}
    wait(lambda: events.update({e.transfer_id: e for e in sender.poll()}) or len(events) == 2)
    assert isinstance(events["small"], Done)
    assert events["big"] == Failed("big", "an area of 17408 bytes does not fit a segment of 16384", unreachable=True)


def test_nobody_there(sender: ShmSender) -> None:
    sender.send("t", "shm:nobody", Source("t").piece(0, 1))
    sender.send("t", "shm:nobody", Source("t").piece(1, 1, True))
    (event,) = sender.poll()
    assert isinstance(event, Failed)
    assert event.unreachable
    assert sender.idle


def no_space(num_bytes: int) -> tuple[int, object]:
    raise OSError(28, "No space left on device")


def test_no_space_for_a_segment(
    receiver: ShmReceiver, sender: ShmSender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shm_receiver, "create_segment", no_space)
    sender.send("t", receiver.endpoint, Source("t").piece(0, 1, True))
    event = end_of(sender)
    assert isinstance(event, Failed)
    assert event.unreachable
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("module", [shm_receiver, shm_sender], ids=["refuses", "is refused"])
def test_another_user(
    receiver: ShmReceiver, sender: ShmSender, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    monkeypatch.setattr(module, "peer_is_us", lambda peer: False)
    sender.send("t", receiver.endpoint, Source("t").piece(0, 1, True))
    event = end_of(sender)
    assert isinstance(event, Failed)
    assert event.unreachable


def test_who_the_peer_is() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert landing.peer_is_us(one)


def test_no_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match="no memfd"):
        ShmReceiver(lambda: None)


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        encode(Taken(1)),
        encode(Landed(KvPiece("t", 1, 1), SEGMENT_BYTES - BLOCK + 1, BLOCK)),
        encode(Landed(KvPiece("t", 1, 1), -1, BLOCK)),
        encode(Landed(KvPiece("t", 1, 1, 1, ("logits",)), 0, BLOCK, (-1,))),
    ],
    ids=["garbage", "another message", "past the end", "before the start", "less than nothing"],
)
def test_a_sender_that_breaks_the_protocol_is_cut_off(receiver: ShmReceiver, message: bytes) -> None:
    target = Target("t", 3)
    receiver.register("t", 3, target.store)
    with connect(receiver) as unix:
        unix.send(encode(Landed(KvPiece("t", 0, 1), 0, BLOCK)))
        unix.send(message)
        unix.send(encode(Landed(KvPiece("t", 1, 1), 0, BLOCK)))
        event = end_of(receiver)
        assert event == Failed("t", "its sender is gone")
        assert unix.recv(100) in (b"", encode(Taken(1)))
    assert target.blocks[1:] == [None, None]
    receiver.register("t2", 1, Target("t2", 1).store)
    with connect(receiver) as unix:
        unix.send(encode(Landed(KvPiece("t2", 0, 1, 1), 0, BLOCK)))
        assert isinstance(end_of(receiver), Done)


def test_a_segment_cannot_be_resized() -> None:
    descriptor, mapping = create_segment(SEGMENT_BYTES)
    for size in (0, 2 * SEGMENT_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    written = open_segment(descriptor, SEGMENT_BYTES)
    written[:5] = b"hello"
    assert mapping[:5] == b"hello"
    with pytest.raises(TypeError):
        mapping[0] = 1
    with pytest.raises(ValueError, match="has not 5 bytes"):
        open_segment(descriptor, 5)
    os.close(descriptor)


def test_a_segment_that_could_be_resized_is_not_mapped() -> None:
    descriptor = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    with pytest.raises(ValueError, match="not sealed"):
        open_segment(descriptor, 4096)
    os.close(descriptor)


def test_descriptors_do_not_pile_up(receiver: ShmReceiver) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(5):
        sender = ShmSender()
        receiver.register(f"t{n}", 1, Target(f"t{n}", 1).store)
        sender.send(f"t{n}", receiver.endpoint, Source(f"t{n}").piece(0, 1, True))
        wait(lambda s=sender: s.poll())  # type: ignore[misc]
        sender.close()
        assert isinstance(end_of(receiver), Done)
    wait(lambda: receiver.poll() or len(os.listdir("/proc/self/fd")) <= before)


def test_a_piece_is_cut_at_blocks() -> None:
    piece = Source("t").piece(3, 10, True, {"logits": b"x"})
    first, rest = piece.cut(4 * BLOCK + 5)
    assert (first.first_block, first.num_blocks, first.last, dict(first.tail)) == (3, 4, False, {})
    assert rest is not None
    assert (rest.first_block, rest.num_blocks, rest.last, rest.num_bytes) == (7, 6, True, 6 * BLOCK + 1)
    assert piece.cut(10 * BLOCK) == (piece, None)
    assert piece.cut(1)[0].num_blocks == 1
