"""Faults at either end: nothing wrong is ever taken for right, and everything ends."""

import random
import time
from collections.abc import Callable

import pytest
from isthmus.kvtransfer.faulty import Fate, FaultyReceiver, FaultySender, random_fates
from isthmus.kvtransfer.leased_receiver import LeasedReceiver
from isthmus.kvtransfer.loopback import LoopbackReceiver, LoopbackSender
from isthmus.kvtransfer.shm_receiver import ShmReceiver
from isthmus.kvtransfer.shm_sender import ShmSender
from isthmus.kvtransfer.transport import Done, Event, Failed, Receiver, Sender
from isthmus.kvtransfer.zmq_transport import ZmqReceiver, ZmqSender
from isthmus.tests.kvtransfer.blocks import BLOCK, Source, Target

INNER: dict[str, tuple[Callable[[], Receiver], Callable[[], Sender]]] = {
    "loopback": (LoopbackReceiver, LoopbackSender),
    "zmq": (lambda: ZmqReceiver(lambda: None), ZmqSender),
    "shm": (lambda: ShmReceiver(lambda: None, segment_bytes=32 * BLOCK), ShmSender),
}
FATES = {
    "late": random_fates(1, max_delay_s=0.01),
    "lost": random_fates(2, loss=0.1),
    "doubled": random_fates(3, doubling=0.1),
    "everything": random_fates(4, max_delay_s=0.005, loss=0.05, doubling=0.05),
}


@pytest.mark.parametrize("fault", [*FATES, "disconnected"])
@pytest.mark.parametrize("name", INNER)
def test_nothing_wrong_is_taken_for_right_and_everything_ends(name: str, fault: str) -> None:
    rng = random.Random(6)
    make_receiver, make_sender = INNER[name]
    now = [0.0]
    receiver = LeasedReceiver([FaultyReceiver(make_receiver())], lease_s=100, clock=lambda: now[0])
    fates = FATES.get(fault, random_fates(5, max_delay_s=0.01))
    sender = FaultySender(make_sender, lambda name, index: Fate() if name == "probe" else fates(name, index))
    targets = {f"t{n}": Target(f"t{n}", rng.randint(1, 30)) for n in range(80)}
    sent: dict[str, Event] = {}
    received: dict[str, Event] = {}

    def look() -> bool:
        """False, for conditions to go on with what there is to see."""
        for ended, events in ((sent, sender.poll()), (received, receiver.poll())):
            for event in events:
                assert event.transfer_id not in ended, "reported twice"
                ended[event.transfer_id] = event
        for transfer_id in received:
            targets[transfer_id].gone = True
        return False

    for n, (transfer_id, target) in enumerate(list(targets.items())):
        num_blocks = len(target.blocks)
        receiver.register(transfer_id, num_blocks, target.store)
        source = Source(transfer_id)
        for first in range(0, num_blocks, 4):
            if transfer_id not in sent:
                last = first + 4 >= num_blocks
                tail = {"logits": transfer_id.encode()} if last else {}
                sender.send(transfer_id, receiver.endpoint, source.piece(first, min(4, num_blocks - first), last, tail))
        look()
        if fault == "disconnected" and n in (30, 60):
            sender.disconnect()
    until(lambda: look() or len(sent) == len(targets))
    assert sender.idle
    targets["probe"] = Target("probe", 1)  # behind all that was not lost
    receiver.register("probe", 1, targets["probe"].store)
    sender.send("probe", receiver.endpoint, Source("probe").piece(0, 1, True, {"logits": b"probe"}))
    until(lambda: look() or "probe" in received)
    now[0] = 100.0
    until(lambda: look() or len(received) == len(targets))
    done = [event for event in received.values() if isinstance(event, Done)]
    for event in done:
        assert targets[event.transfer_id].whole
        assert bytes(event.tail["logits"]) == event.transfer_id.encode()
    assert (len(done) == len(targets)) == (fault == "late"), received
    assert len(done) > 10
    sender.close()
    receiver.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


class Script:
    """A sender over loopback whose time is the test's."""

    def __init__(self, fates: dict[int, Fate]):
        self.now = 0.0
        self.receiver = LoopbackReceiver()
        self.sender = FaultySender(LoopbackSender, lambda _, index: fates.get(index, Fate()), clock=lambda: self.now)
        self.target = Target("t", 4)
        self.stored: list[int] = []
        self.receiver.register("t", 4, self._store)
        self.source = Source("t")

    def _store(self, first_block: int, num_blocks: int, payload: memoryview) -> None:
        self.stored.append(first_block)
        self.target.store(first_block, num_blocks, payload)

    def send(self, *blocks: int) -> None:
        for block in blocks:
            last = block == 3
            piece = self.source.piece(block, 1, last, {"logits": b"l"} if last else None)
            self.sender.send("t", self.receiver.endpoint, piece)

    def at(self, now: float) -> tuple[list[Done | Failed], list[Event]]:
        """What the sender and the receiver report then."""
        self.now = now
        return self.sender.poll(), self.receiver.poll()


def test_pieces_with_different_delays_overtake_each_other() -> None:
    script = Script({0: Fate(delay_s=3), 1: Fate(delay_s=1), 3: Fate(delay_s=2)})
    script.send(0, 1, 2, 3)
    assert script.at(2.5) == ([], [])
    assert script.stored == [2, 1, 3]
    assert script.at(3) == ([Done("t", 4 * BLOCK + 1)], [Done("t", 4 * BLOCK + 1, {"logits": memoryview(b"l")})])
    assert script.target.whole


def test_a_lost_piece_is_missed() -> None:
    script = Script({1: Fate(lost=True)})
    script.send(0, 1, 2, 3)
    _, (event,) = script.at(0)
    assert event == Failed("t", "3 of 4 blocks came")


def test_the_end_may_be_lost_without_the_sender_knowing() -> None:
    script = Script({3: Fate(lost=True)})
    script.send(0, 1, 2, 3)
    assert script.at(0) == ([Done("t", 0)], [])
    assert script.sender.idle


@pytest.mark.parametrize("index", [1, 3])
def test_a_piece_that_comes_twice_is_noticed(index: int) -> None:
    script = Script({index: Fate(doubled=True)})
    script.send(0, 1, 2, 3)
    _, (event,) = script.at(0)
    assert event == Failed("t", f"blocks {index} to {index + 1} came twice")


def test_paused_and_resumed() -> None:
    script = Script({})
    script.send(0)
    script.sender.pause()
    script.send(1, 2, 3)
    assert script.at(100) == ([], [])
    assert script.stored == [0]
    assert not script.sender.idle
    script.sender.resume()
    assert [type(event) for events in script.at(100) for event in events] == [Done, Done]


def test_abandoned_while_it_is_held_up() -> None:
    script = Script({1: Fate(delay_s=1)})
    script.send(0, 1, 2, 3)
    script.sender.abandon("t")
    script.source.gone = True
    assert script.at(5) == ([], [])
    assert script.sender.idle


def test_disconnected() -> None:
    script = Script({1: Fate(delay_s=1)})
    script.send(0, 1, 2, 3)
    script.sender.disconnect()
    assert script.at(5) == ([Failed("t", "the connection broke")], [])
    assert script.stored == [0, 2, 3]
    assert script.sender.idle
