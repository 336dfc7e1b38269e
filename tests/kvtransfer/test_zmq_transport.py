"""What is particular to ZeroMQ; the rest is in test_conformance.py."""

import time
from collections.abc import Callable, Iterator

import pytest
import zmq
from isthmus.kvtransfer.transport import Done, Failed
from isthmus.kvtransfer.zmq_transport import ZmqReceiver, ZmqSender
from isthmus.tests.kvtransfer.blocks import Source, Target, content
from isthmus.wire.codec import decode_kv_header, encode
from isthmus.wire.messages import KvPiece


@pytest.fixture
def receiver() -> Iterator[ZmqReceiver]:
    receiver = ZmqReceiver(lambda: None)
    yield receiver
    receiver.close()


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_receiver_is_woken() -> None:
    woken: list[int] = []
    receiver, sender = ZmqReceiver(lambda: woken.append(1)), ZmqSender()
    sender.send("t", receiver.endpoint, Source("t").piece(0, 1, True))
    wait(lambda: sender.poll() or woken)
    sender.close()
    receiver.close()


def test_garbage_is_dropped(receiver: ZmqReceiver, caplog: pytest.LogCaptureFixture) -> None:
    target = Target("t", 1)
    receiver.register("t", 1, target.store)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(receiver.endpoint)
        push.send(b"\xc1 garbage")
        push.send_multipart([encode(KvPiece("unknown", 0, 1, 1)), b"x"])
        push.send_multipart([encode(KvPiece("t", 0, 1, 1)), content("t", 0)])
        wait(lambda: receiver.num_arrived == 3)
        (done,) = receiver.poll()
    assert isinstance(done, Done)
    assert target.whole
    assert "dropping a KV piece" in caplog.text


def test_announced_tail_frames_must_come(receiver: ZmqReceiver) -> None:
    receiver.register("t", 1, Target("t", 1).store)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(receiver.endpoint)
        push.send_multipart([encode(KvPiece("t", 0, 1, 1, ("logits",))), content("t", 0)])
        wait(lambda: receiver.num_arrived)
        (event,) = receiver.poll()
    assert isinstance(event, Failed)
    assert "0 tail tensors where 1" in event.error


def test_a_header_alone_is_no_piece(receiver: ZmqReceiver) -> None:
    receiver.register("t", 1, Target("t", 1).store)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(receiver.endpoint)
        push.send(encode(KvPiece("t", 0, 1, 1)))
        wait(lambda: receiver.num_arrived)
        (event,) = receiver.poll()
    assert isinstance(event, Failed)
    assert "0 bytes for 1 blocks" in event.error


def test_a_receiver_that_is_not_there_fails_its_transfers_once() -> None:
    time_s = [0.0]
    sender = ZmqSender(stalled_s=5, clock=lambda: time_s[0])
    sender.send("a", "tcp://127.0.0.1:9", Source("a").piece(0, 1, True))
    sender.send("b", "tcp://127.0.0.1:9", Source("b").piece(0, 1))
    time_s[0] = 4
    assert sender.poll() == []
    time_s[0] = 6
    events = sender.poll()
    assert [event.transfer_id for event in events] == ["a", "b"]
    assert all(isinstance(event, Failed) and "took nothing for 5 s" in event.error for event in events)
    assert sender.idle
    sender.close()


def test_blocks_are_read_only_when_there_is_room(receiver: ZmqReceiver) -> None:
    """Nobody takes anything here: what was read stays within what ZeroMQ queues."""
    num_read = 0
    source = Source("t")

    def read(first_block: int, num_blocks: int, out: memoryview | None) -> memoryview:
        nonlocal num_read
        num_read += 1
        return source.read(first_block, num_blocks, out)

    sender = ZmqSender()
    for block in range(500):
        piece = source.piece(block, 1)
        sender.send("t", "tcp://127.0.0.1:9", type(piece)(block, 1, piece.bytes_per_block, read))
    sender.poll()
    assert num_read == 0
    sender.close()


def test_no_buffer_is_used_again_before_zeromq_lets_go_of_it() -> None:
    """The receiver is slow: what waits in between must stay as it was written."""
    source, sender = Source("t"), ZmqSender()
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.setsockopt(zmq.RCVHWM, 1)
        pull.setsockopt(zmq.RCVBUF, 1 << 16)
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        for n in range(60):
            sender.send("t", f"tcp://127.0.0.1:{port}", source.piece(150 * n, 150, n == 59))
        events: list[Done | Failed] = []
        for n in range(60):
            for _ in range(3):
                events += sender.poll()
                time.sleep(0.001)
            while not pull.poll(10):
                events += sender.poll()
            _, payload = pull.recv_multipart()
            assert payload == source.read(150 * n, 150, None)
        wait(lambda: events or events.extend(sender.poll()))  # type: ignore[func-returns-value]
    assert events == [Done("t", 60 * 150 * 1024)]
    sender.close()


def test_nor_is_the_buffer_of_a_last_piece_whose_small_tail_has_gone_ahead() -> None:
    """A tail is copied at once, and done before the payload is."""
    sender = ZmqSender()
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.setsockopt(zmq.RCVHWM, 1)
        pull.setsockopt(zmq.RCVBUF, 1 << 16)
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        sources = {f"t{n}": Source(f"t{n}") for n in range(60)}
        for source in sources.values():
            piece = source.piece(0, 150, last=True, tail={"logits": b"small"})
            sender.send(source.transfer_id, f"tcp://127.0.0.1:{port}", piece)
        while sources:
            for _ in range(3):
                sender.poll()
                time.sleep(0.001)
            while not pull.poll(10):
                sender.poll()
            header, payload, tail = pull.recv_multipart()
            source = sources.pop(decode_kv_header(header).transfer_id)
            assert payload == source.read(0, 150, None)
            assert tail == b"small"
    sender.close()
