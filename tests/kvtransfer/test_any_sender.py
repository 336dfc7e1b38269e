"""Alternatives: the first that leads to the receiver, and what happens on the way to it."""

import logging
import time
from collections.abc import Iterator

import pytest
from isthmus.kvtransfer import open as opening
from isthmus.kvtransfer.any_sender import AnySender
from isthmus.kvtransfer.open import open_receiver, open_sender
from isthmus.kvtransfer.transport import Done, Failed
from isthmus.tests.kvtransfer.blocks import Source, Target


@pytest.fixture
def sender() -> Iterator[AnySender]:
    sender = open_sender()
    yield sender
    sender.close()


def both_ends(sender: AnySender, endpoint: str, receiver: object = None) -> tuple[list[Done | Failed], Target]:
    target, source, events = Target("t", 6), Source("t"), []
    if receiver is not None:
        receiver.register("t", 6, target.store)  # type: ignore[attr-defined]
    for first in (0, 2, 4):
        sender.send("t", endpoint, source.piece(first, 2, first == 4))
    deadline = time.monotonic() + 5
    while len(events) < (1 if receiver is None else 2) and time.monotonic() < deadline:
        events += sender.poll() + (receiver.poll() if receiver is not None else [])  # type: ignore[attr-defined]
    return events, target


def test_an_endpoint_names_every_way_the_best_first() -> None:
    receiver = open_receiver(lambda: None)
    assert [one.partition(":")[0] for one in receiver.endpoint.split(";")] == ["shm", "tcp"]
    receiver.close()


def test_shared_memory_is_preferred(sender: AnySender) -> None:
    receiver = open_receiver(lambda: None)
    events, target = both_ends(sender, receiver.endpoint, receiver)
    assert [type(event) for event in events] == [Done, Done]
    assert target.whole
    assert sender._senders["tcp"]._channels == {}  # type: ignore[attr-defined]
    receiver.close()


def test_what_cannot_be_reached_is_left_out_with_one_line(sender: AnySender, caplog: pytest.LogCaptureFixture) -> None:
    receiver = open_receiver(lambda: None, transports=["zmq"])
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            events, target = both_ends(sender, f"shm:nobody;hyper:link;{receiver.endpoint}", receiver)
            assert [type(event) for event in events] == [Done, Done]
            assert target.whole
    assert caplog.text.count("KV goes another way: shm:nobody") == 1
    assert sender.idle
    receiver.close()


@pytest.mark.parametrize("endpoint", ["shm:nobody", "hyper:link", ""])
def test_no_way_at_all(sender: AnySender, endpoint: str) -> None:
    events, _ = both_ends(sender, endpoint)
    assert [(type(event), event.transfer_id) for event in events] == [(Failed, "t")]
    assert sender.idle


def test_abandoned_between_two_alternatives(sender: AnySender) -> None:
    sender.send("t", "shm:nobody;tcp://127.0.0.1:9", Source("t").piece(0, 1))
    assert sender.poll() == []
    sender.abandon("t")
    assert sender.poll() == []
    assert sender.idle


def test_without_shared_memory_the_rest_is_opened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(notify: object) -> object:
        raise OSError("this system has no memfd")

    monkeypatch.setattr(opening, "ShmReceiver", fail)
    receiver = open_receiver(lambda: None)
    assert receiver.endpoint.startswith("tcp:")
    assert "no KV over shm: this system has no memfd" in caplog.text
    receiver.close()
    with pytest.raises(ValueError, match="none of shm works here"):
        open_receiver(lambda: None, transports=["shm"])


def test_unknown_transports_are_refused() -> None:
    with pytest.raises(ValueError, match="no transport 'pigeon'"):
        open_receiver(lambda: None, transports=["pigeon"])
