"""CURVE keys: who has the right ones is welcomed, everyone else is not, and both ends say so."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from isthmus.wire.curve import ClientKeys, KeyPair, load_router_keys, load_worker_keys, make_keys
from isthmus.wire.hub import Hub
from isthmus.wire.messages import PROTOCOL_VERSION, Heartbeat, Hello, Welcome
from isthmus.wire.worker_link import WorkerLink

WELCOME = Welcome("r", 3, "model", 0.02)
STRANGER = KeyPair(*zmq.curve_keypair())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "made"
    make_keys(folder)
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    hub = Hub("tcp://127.0.0.1:*", load_router_keys(folder))
    yield hub
    hub.close()


@pytest.fixture
def connect(hub: Hub) -> Iterator[Callable[[ClientKeys | None], WorkerLink]]:
    links = []

    def start(keys: ClientKeys | None) -> WorkerLink:
        links.append(WorkerLink(hub.address, Hello(PROTOCOL_VERSION, "decode", "d0", 1), Heartbeat, keys=keys))
        links[-1].start()
        return links[-1]

    yield start
    for link in links:
        link.close()


def heard(hub: Hub, done: Callable[[], bool], timeout_s: float = 5.0) -> list[object]:
    """All that came until then."""
    deadline = time.monotonic() + timeout_s
    messages: list[object] = []
    while not done():
        assert time.monotonic() < deadline
        for peer, message in hub.receive():
            messages.append(message)
            hub.send(peer, WELCOME)
        time.sleep(0.002)
    return messages


def test_a_worker_with_the_right_keys_is_welcomed(hub: Hub, folder: Path, connect: Callable[..., WorkerLink]) -> None:
    link = connect(load_worker_keys(folder).to_router)
    assert any(isinstance(message, Hello) for message in heard(hub, lambda: not link.inbox.empty()))
    assert link.inbox.get(timeout=5) == WELCOME


WRONG: dict[str, Callable[[ClientKeys], ClientKeys | None]] = {
    "none": lambda right: None,
    "unknown": lambda right: replace(right, own=STRANGER),
    "of another router": lambda right: replace(right, server=STRANGER.public),
    "not its own": lambda right: replace(right, own=KeyPair(right.own.public, STRANGER.secret)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_worker_with_wrong_keys_is_never_heard_and_the_router_says_so(
    hub: Hub,
    folder: Path,
    connect: Callable[..., WorkerLink],
    caplog: pytest.LogCaptureFixture,
    wrong: Callable[[ClientKeys], ClientKeys | None],
) -> None:
    right = load_worker_keys(folder).to_router
    link = connect(wrong(right))

    def refused() -> bool:
        return any(r.name == "isthmus.wire.zap" and "was refused" in r.message for r in caplog.records)

    with caplog.at_level(logging.WARNING):
        assert heard(hub, refused) == []
        until = time.monotonic() + 0.7  # another Hello would have come
        assert heard(hub, lambda: time.monotonic() > until) == []
    assert link.inbox.empty()


def test_a_worker_with_keys_does_not_talk_to_a_router_without(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub("tcp://127.0.0.1:*")
    keys = load_worker_keys(folder).to_router
    link = WorkerLink(hub.address, Hello(PROTOCOL_VERSION, "decode", "d0", 1), Heartbeat, keys=keys)
    link.start()
    with caplog.at_level(logging.WARNING):
        assert heard(hub, lambda: "refuses the connection" in caplog.text) == []
    link.close()
    hub.close()


def test_keys_are_made_once_and_the_secret_ones_are_for_their_user_alone(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o077 for path in folder.glob("*.key_secret")}
    assert modes == {"router.key_secret": 0, "worker.key_secret": 0}
    with pytest.raises(FileExistsError, match="there are keys in"):
        make_keys(folder)
    assert b"secret" not in repr(load_router_keys(folder)).encode()


def test_files_that_are_not_there_or_hold_no_secret_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        load_router_keys(tmp_path)
    (tmp_path / "router.key_secret").write_text((folder / "router.key").read_text())
    with pytest.raises(ValueError, match="has no secret key"):
        load_router_keys(tmp_path)
