"""KV over ZeroMQ with CURVE keys: only from who has them."""

import time

import pytest
import zmq
from isthmus.kvtransfer.transport import Done, Failed
from isthmus.kvtransfer.zmq_transport import ZmqReceiver, ZmqSender
from isthmus.tests.kvtransfer.blocks import Source, Target
from isthmus.wire.curve import ClientKeys, KeyPair, WorkerKeys

OURS = WorkerKeys(KeyPair(*zmq.curve_keypair()), router=zmq.curve_keypair()[0])
STRANGER = KeyPair(*zmq.curve_keypair())


def moved(keys: ClientKeys | None, *, stalled_s: float = 30.0) -> tuple[list[object], Target]:
    """What both ends say of a transfer from a sender with these keys, until one has something to say."""
    receiver, sender = ZmqReceiver(lambda: None, keys=OURS.from_workers), ZmqSender(keys=keys, stalled_s=stalled_s)
    target, events = Target("t", 2), list[object]()
    receiver.register("t", 2, target.store)
    sender.send("t", receiver.endpoint, Source("t").piece(0, 2, last=True))
    deadline = time.monotonic() + 5
    while not any(isinstance(event, Failed) for event in events) and not target.whole:
        assert time.monotonic() < deadline
        events += [*receiver.poll(), *sender.poll()]
        time.sleep(0.002)
    sender.close()
    receiver.close()
    return events, target


def test_with_the_keys_it_arrives() -> None:
    events, target = moved(OURS.to_workers)
    assert target.whole
    assert any(isinstance(event, Done) for event in events)


@pytest.mark.parametrize(
    "keys",
    [None, ClientKeys(STRANGER, OURS.own.public), ClientKeys(OURS.own, STRANGER.public)],
    ids=["none", "unknown", "for another receiver"],
)
def test_without_them_nothing_does_and_the_sender_is_told(keys: ClientKeys | None) -> None:
    events, target = moved(keys, stalled_s=0.5)
    assert target.blocks == [None, None]
    assert [event.transfer_id for event in events if isinstance(event, Failed)] == ["t"]
    assert not any(isinstance(event, Done) for event in events)
