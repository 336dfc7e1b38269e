"""Transfers that go wrong in every way: each request ends with the tokens it must have, and no worker keeps a block."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
from isthmus.decode import worker as decode_worker
from isthmus.engine.fake_engine import FakeEngine
from isthmus.kvtransfer.any_sender import AnySender
from isthmus.kvtransfer.faulty import Fate, Fates, FaultyReceiver, FaultySender, no_faults, random_fates
from isthmus.kvtransfer.leased_receiver import LeasedReceiver
from isthmus.kvtransfer.open import open_sender
from isthmus.kvtransfer.shm_receiver import ShmReceiver
from isthmus.kvtransfer.zmq_transport import ZmqReceiver
from isthmus.prefill import worker as prefill_worker
from isthmus.prefill.worker import PrefillLoop
from isthmus.router.core import RouterCore
from isthmus.router.job import JobError
from isthmus.tests.local_cluster import Ask, LocalCluster
from isthmus.tests.scripted_router import BLOCK_SIZE, VOCAB_SIZE, fake_load
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams

ORACLE = FakeEngine(1, BLOCK_SIZE, VOCAB_SIZE)
LEASE_S = 1.0
PAUSE_S = 1.8
"""Long enough for an idle worker to notice that a lease has expired, too short for the next one to expire."""
MOST_HARM = 2
"""Transfers of one request that may be lost: the router gives it up at the third failure."""


class Mischief:
    """Fates that spare a request once it has lost MOST_HARM transfers."""

    def __init__(self, fates: Fates):
        self.num_harmed = 0
        self._fates = fates
        self._harmed: dict[int, set[str]] = defaultdict(set)
        self.request_of: Callable[[str], int | None] = lambda transfer_id: None

    def __call__(self, transfer_id: str, index: int) -> Fate:
        fate = self._fates(transfer_id, index)
        if not (fate.lost or fate.doubled):
            return fate
        request = self.request_of(transfer_id)
        if request is None:  # given up already
            return fate
        harmed = self._harmed[request]
        if transfer_id not in harmed and len(harmed) >= MOST_HARM:
            return replace(fate, lost=False, doubled=False)
        harmed.add(transfer_id)
        self.num_harmed += 1
        return fate


class FaultyCluster(LocalCluster):
    """Two prefill and two decode workers of the fake engine, with KV over one transport, and faults on both ends."""

    def __init__(self, transport: str, fates: Fates = no_faults, *, lease_s: float = LEASE_S, step_s: float = 0.0):
        self.mischief = Mischief(fates)
        self.mischief.request_of = self._request_of
        self.senders: list[FaultySender] = []
        self.receivers: list[FaultyReceiver] = []
        self._transport, self._lease_s = transport, lease_s
        with ExitStack() as stack:
            make_prefill = partial(prefill_worker.make_worker, make_sender=self._make_sender)
            stack.enter_context(patch.object(prefill_worker, "make_worker", make_prefill))
            super().__init__(
                fake_load(num_blocks=160, step_s=step_s),
                num_prefill=2,
                num_decode=2,
                max_num_seqs=8,
                max_num_batched_tokens=16,
            )

    def __enter__(self) -> "FaultyCluster":
        with patch.object(decode_worker, "open_receiver", self._make_receiver):
            super().__enter__()
        return self

    async def _start(self) -> RouterCore:
        core = RouterCore(
            self.hub,
            model="model",
            on_crash=self.crashes.append,
            local_prefill_max_tokens=0,
            heartbeat_interval_s=0.05,
        )
        core.start()
        return core

    def _make_sender(self) -> FaultySender:
        self.senders.append(FaultySender(open_sender, self.mischief))
        return self.senders[-1]

    def _make_receiver(self, notify: Callable[[], None], **_: object) -> LeasedReceiver:
        inner = ShmReceiver(notify, segment_bytes=1 << 16) if self._transport == "shm" else ZmqReceiver(notify)
        self.receivers.append(FaultyReceiver(inner))
        return LeasedReceiver(self.receivers[-1:], lease_s=self._lease_s)

    def _request_of(self, transfer_id: str) -> int | None:
        attempt = self.core.ledger._attempts.by_placement.get(int(transfer_id.rpartition(".")[2]))
        return None if attempt is None else attempt.entry.arrival

    def num_expired(self) -> int:
        return sum(worker.role.stats().num_expired_leases for worker in self.workers.values() if worker.role)


def make_asks(num_asks: int, num_tokens: int = 12) -> list[Ask]:
    rng = random.Random(4)
    prefix = [rng.randrange(VOCAB_SIZE) for _ in range(40)]
    asks = []
    for _ in range(num_asks):
        prompt = prefix[: rng.choice([0, 0, 9, 40])] + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 50))]
        params = SamplingParams(seed=rng.getrandbits(60), max_tokens=num_tokens)
        cancel_after = rng.randint(1, 6) if rng.random() < 0.15 else None
        asks.append(Ask(prompt, params, rng.choice([1, 1, 2]), cancel_after))
    return asks


def judge(asks: list[Ask], answers: list[list[list[int]]]) -> None:
    for ask, outputs in zip(asks, answers, strict=True):
        assert ask.params.max_tokens is not None
        for choice, output in enumerate(outputs):
            key = philox_key(ask.params.seed, 0, choice)
            whole = ORACLE.expected_tokens(list(ask.prompt_ids), key, ask.params.max_tokens)
            assert output == (whole if ask.cancel_after is None else whole[: len(output)])


def wait_until_unused(cluster: LocalCluster) -> None:
    deadline = time.monotonic() + 10
    while any(cluster.used_blocks().values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(cluster.used_blocks().values()) == {0}


FAULTS: dict[str, Callable[[], Fates]] = {
    "nothing": lambda: no_faults,
    "late, overtaken": lambda: random_fates(1, max_delay_s=0.05),
    "lost": lambda: random_fates(2, loss=0.05),
    "doubled": lambda: random_fates(3, doubling=0.1),
    "all at once": lambda: random_fates(4, max_delay_s=0.02, loss=0.03, doubling=0.05),
}


@pytest.mark.parametrize("transport", ["shm", "zmq"])
@pytest.mark.parametrize("fault", FAULTS)
def test_pieces_that_are(fault: str, transport: str) -> None:
    asks = make_asks(60)
    with FaultyCluster(transport, FAULTS[fault]()) as cluster:
        judge(asks, cluster.ask(asks))
        wait_until_unused(cluster)
        if fault in ("lost", "doubled", "all at once"):
            assert cluster.mischief.num_harmed > 5
        else:
            assert cluster.num_expired() == 0


Later = Callable[[float, Callable[[], None]], None]


@pytest.fixture
def later() -> Iterator[Later]:
    """Does things after so many seconds, while requests run."""
    timers: list[threading.Timer] = []

    def start(delay_s: float, action: Callable[[], None]) -> None:
        timers.append(threading.Timer(delay_s, action))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join()


@pytest.mark.parametrize("transport", ["shm", "zmq"])
def test_a_sender_that_stops_past_its_lease_and_goes_on(transport: str, later: Later) -> None:
    asks = make_asks(40)
    with FaultyCluster(transport) as cluster:
        role = cluster.workers["prefill-0"].role
        assert isinstance(role, PrefillLoop)
        sender = role._sender
        assert isinstance(sender, FaultySender)

        def go_on() -> None:
            del role.held
            sender.resume()

        role.held = lambda: ()  # type: ignore[method-assign]
        sender.pause()
        later(PAUSE_S, go_on)
        judge(asks, cluster.ask(asks))
        assert cluster.num_expired() > 0
        judge(asks, cluster.ask(asks))  # with all of them back, and what was held up meanwhile
        wait_until_unused(cluster)


@pytest.mark.parametrize("transport", ["shm", "zmq"])
def test_a_receiver_that_stops_past_its_lease_and_goes_on(transport: str, later: Later) -> None:
    asks = make_asks(40)
    with FaultyCluster(transport) as cluster:
        cluster.receivers[0].pause()
        later(PAUSE_S, cluster.receivers[0].resume)
        judge(asks, cluster.ask(asks))
        assert cluster.num_expired() > 0
        judge(asks, cluster.ask(asks))
        wait_until_unused(cluster)


@pytest.mark.parametrize("transport", ["shm", "zmq"])
def test_connections_that_break(transport: str, later: Later) -> None:
    asks = make_asks(80, num_tokens=30)
    with FaultyCluster(transport, random_fates(5, max_delay_s=0.05)) as cluster:
        for n, sender in enumerate(cluster.senders):
            later(0.05 + 0.1 * n, sender.disconnect)
        judge(asks, cluster.ask(asks))
        wait_until_unused(cluster)


def test_prefill_that_takes_longer_than_a_lease() -> None:
    """Heartbeats renew what waits and what is being computed; without them it expires."""
    rng = random.Random(9)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(100)] for _ in range(2)]
    asks = [Ask(prompt, SamplingParams(seed=1, max_tokens=2)) for prompt in prompts]
    with FaultyCluster("shm", lease_s=0.6, step_s=0.15) as cluster:
        judge(asks, cluster.ask(asks))
        assert cluster.num_expired() == 0
        for worker in cluster.workers.values():
            assert worker.role is not None
            worker.role.held = lambda: ()  # type: ignore[method-assign]
        with suppress(JobError):  # it may be lucky at the third attempt, with what the first two have left in the cache
            cluster.ask([replace(ask, prompt_ids=ask.prompt_ids[::-1]) for ask in asks])
        assert cluster.num_expired() > 0
        wait_until_unused(cluster)


def test_a_sender_that_cannot_use_shared_memory_takes_tcp() -> None:
    asks = make_asks(20)
    with patch.object(ShmReceiver, "_accept", lambda self: self._listener.accept()[0].close()):
        with LocalCluster(fake_load(num_blocks=160), num_prefill=1, num_decode=2) as cluster:
            judge(asks, cluster.ask(asks))
            wait_until_unused(cluster)
            (sender,) = [w.role._sender for w in cluster.workers.values() if hasattr(w.role, "_sender")]
            assert isinstance(sender, AnySender)
            assert len(sender._unreachable) == 2
