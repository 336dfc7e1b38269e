"""The hub and worker links over real sockets on the loopback interface."""

import queue
import time
from collections.abc import Callable, Iterator

import pytest
import zmq
from isthmus.wire.codec import encode
from isthmus.wire.hub import Dropped, Hub
from isthmus.wire.messages import (
    PROTOCOL_VERSION,
    Credit,
    Drain,
    Goodbye,
    Heartbeat,
    Hello,
    HelloRefused,
    SayHello,
    Welcome,
)
from isthmus.wire.worker_link import RouterLost, WorkerLink, identity

WELCOME = Welcome("r", 3, "model", 0.02)


def hello(name: str = "d0", epoch: int = 1) -> Hello:
    return Hello(PROTOCOL_VERSION, "decode", name, epoch)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub("tcp://127.0.0.1:*")
    yield hub
    hub.close()


@pytest.fixture
def connect(hub: Hub) -> Iterator[Callable[..., WorkerLink]]:
    links = []

    def start(name: str = "d0", epoch: int = 1, silence_s: float = 30.0) -> WorkerLink:
        links.append(WorkerLink(hub.address, hello(name, epoch), Heartbeat, silence_s=silence_s))
        links[-1].start()
        return links[-1]

    yield start
    for link in links:
        link.close()


def wait_for(hub: Hub, wanted: Callable[[object], bool], timeout_s: float = 5.0) -> tuple[bytes, object]:
    """The first message that is `wanted`; others are passed over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for peer, message in hub.receive(limit=1):
            if wanted(message):
                return peer, message
        time.sleep(0.001)
    raise AssertionError("it did not come")


def is_a(kind: type) -> Callable[[object], bool]:
    return lambda message: isinstance(message, kind)


def registered(hub: Hub, link: WorkerLink) -> bytes:
    peer, _ = wait_for(hub, is_a(Hello))
    assert hub.send(peer, WELCOME)
    assert link.inbox.get(timeout=5) == WELCOME
    return peer


def test_hello_welcome_and_messages_both_ways_in_order(hub: Hub, connect: Callable[..., WorkerLink]) -> None:
    link = connect()
    for n in range(100):
        link.send(Credit(n, n))
    peer = registered(hub, link)
    assert peer == identity(hello())
    seen = [wait_for(hub, is_a(Credit))[1] for _ in range(100)]
    assert seen == [Credit(n, n) for n in range(100)]
    assert hub.send(peer, Drain())
    assert link.inbox.get(timeout=5) == Drain()


def test_the_link_beats_by_itself(hub: Hub, connect: Callable[..., WorkerLink]) -> None:
    registered(hub, connect())
    for _ in range(3):
        wait_for(hub, is_a(Heartbeat))


def test_a_silent_router_is_lost_and_greeted_again(hub: Hub, connect: Callable[..., WorkerLink]) -> None:
    link = connect(silence_s=0.1)
    peer = registered(hub, link)
    for _ in range(8):
        hub.beat([peer])
        time.sleep(0.03)
    with pytest.raises(queue.Empty):
        link.inbox.get_nowait()
    lost = link.inbox.get(timeout=5)
    assert isinstance(lost, RouterLost)
    assert "silent" in lost.reason
    registered(hub, link)


def test_what_was_meant_for_a_lost_router_reaches_no_other(hub: Hub, connect: Callable[..., WorkerLink]) -> None:
    link = connect()
    peer = registered(hub, link)
    assert hub.send(peer, SayHello())
    assert isinstance(link.inbox.get(timeout=5), RouterLost)
    registered(hub, link)
    link.send(Credit(7, 7))
    assert wait_for(hub, is_a(Credit))[1] == Credit(7, 7)


def test_refusal_reaches_the_worker(hub: Hub, connect: Callable[..., WorkerLink]) -> None:
    link = connect()
    peer, _ = wait_for(hub, is_a(Hello))
    hub.drop(peer, "no room")
    assert link.inbox.get(timeout=5) == HelloRefused("no room")


def test_an_undecodable_message_drops_that_peer_and_nothing_else(
    hub: Hub, connect: Callable[..., WorkerLink], caplog: pytest.LogCaptureFixture
) -> None:
    good = connect("good")
    good_peer = registered(hub, good)
    with zmq.Context() as context, context.socket(zmq.DEALER) as bad:
        bad.setsockopt(zmq.IDENTITY, b"bad")
        bad.setsockopt(zmq.LINGER, 0)
        bad.connect(hub.address)
        bad.send(b"\xc1")
        peer, dropped = wait_for(hub, is_a(Dropped))
        assert peer == b"bad"
        assert isinstance(dropped, Dropped)
        assert "dropping worker bad" in caplog.text
        bad.send(encode(Goodbye("sane again")))
        good.send(Credit(1, 1))
        assert wait_for(hub, lambda message: not isinstance(message, Heartbeat)) == (good_peer, Credit(1, 1))


def test_several_frames_are_no_message(hub: Hub) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as bad:
        bad.setsockopt(zmq.LINGER, 0)
        bad.connect(hub.address)
        bad.send_multipart([encode(Goodbye("a")), b"extra"])
        assert wait_for(hub, is_a(Dropped))[1] == Dropped("2 frames where one was expected")


def test_sending_to_nobody_says_so(hub: Hub) -> None:
    assert not hub.send(b"nobody", Drain())


def test_a_restarted_worker_is_another_peer(hub: Hub, connect: Callable[..., WorkerLink]) -> None:
    first = registered(hub, connect(epoch=1))
    second = registered(hub, connect(epoch=2))
    assert first != second


def test_an_address_in_use_is_an_error(hub: Hub) -> None:
    with pytest.raises(zmq.ZMQError, match="in use"):
        Hub(hub.address)
