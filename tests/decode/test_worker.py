"""Real worker loops, sockets and transports around the fake engine, told what to do by a scripted router."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from isthmus.decode.scheduler import DecodeScheduler
from isthmus.decode.worker import DecodeLoop
from isthmus.engine.block_pool import BlockPool
from isthmus.engine.fake_engine import FakeEngine
from isthmus.engine.worker import Loaded, Refused
from isthmus.kvtransfer.transport import PoolBlocks
from isthmus.tests.scripted_router import (
    BLOCK_SIZE,
    FAKE,
    VOCAB_SIZE,
    ScriptedRouter,
    WorkerThread,
    fake_load,
    make_worker,
    reserve,
)
from isthmus.wire.codec import pack_ids
from isthmus.wire.messages import (
    Cancel,
    Cancelled,
    Credit,
    Declined,
    Drain,
    Failed,
    Goodbye,
    Heartbeat,
    HelloRefused,
    Prefill,
    Prefilled,
    Reserved,
    SayHello,
    Tokens,
)
from isthmus.wire.noise import philox_key

PROMPT = list(range(100, 130))


@pytest.fixture
def router() -> Iterator[ScriptedRouter]:
    router = ScriptedRouter()
    yield router
    router.hub.close()


@pytest.fixture
def start(router: ScriptedRouter) -> Iterator[Callable[..., WorkerThread]]:
    threads: list[WorkerThread] = []

    def start(role: str, load: Callable[[str], Loaded] | None = None, name: str | None = None) -> WorkerThread:
        threads.append(WorkerThread(make_worker(role, router, load or fake_load(), name)))
        return threads[-1]

    yield start
    for thread in threads:
        thread.stop()


def collect(router: ScriptedRouter, num_finished: int) -> dict[tuple[int, int], list[int]]:
    """Tokens by placement and choice, until so many choices have finished."""
    outputs: dict[tuple[int, int], list[int]] = defaultdict(list)
    while num_finished:
        for row in router.expect(Tokens).rows:
            output = outputs[row.placement, row.choice]
            assert row.position == len(output)
            output += row.token_ids
            num_finished -= row.finish_reason is not None
    return dict(outputs)


def expected(prompt: list[int], choice: int = 0, num_tokens: int = 10) -> list[int]:
    engine = FakeEngine(1, BLOCK_SIZE, VOCAB_SIZE)
    return engine.expected_tokens(prompt, philox_key(7, 0, choice), num_tokens)


def prefill_message(placement: int, reserved: Reserved, endpoint: str, prompt: list[int]) -> Prefill:
    return Prefill(
        placement=placement,
        request_id=f"request-{placement}",
        token_ids=pack_ids(prompt),
        first_token=reserved.num_cached_tokens,
        data_endpoint=endpoint,
        transfer_id=reserved.transfer_id,
        cost_tokens=len(prompt),
    )


@pytest.mark.parametrize("overlaps", [True, False])
def test_aggregated(router: ScriptedRouter, start: Callable[..., WorkerThread], overlaps: bool) -> None:
    start("decode", fake_load(overlaps))
    ready = router.welcome("decode")
    assert ready.fingerprint == FAKE
    assert ready.capacity.num_blocks == 64
    router.send("decode", reserve(1, PROMPT))
    router.send("decode", reserve(2, PROMPT[:7], num_choices=3))
    assert router.expect(Reserved) == Reserved(1, 0, "")
    outputs = collect(router, 4)
    assert outputs[1, 0] == expected(PROMPT)
    assert [outputs[2, choice] for choice in range(3)] == [expected(PROMPT[:7], choice) for choice in range(3)]


def test_a_step_is_taken_in_and_told_before_the_engine_hears_more(
    router: ScriptedRouter, start: Callable[..., WorkerThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then masks that follow from its tokens are known, and nobody waits for his token while they are made."""
    happened: list[tuple[str, int]] = []

    def noting(kind: type, name: str, step_id: Callable[..., int]) -> None:
        original = getattr(kind, name)

        def noted(*given: Any) -> Any:
            happened.append((name, step_id(*given)))
            return original(*given)

        monkeypatch.setattr(kind, name, noted)

    noting(FakeEngine, "launch", lambda _, plan: plan.step_id)
    noting(DecodeScheduler, "apply", lambda _, plan, *rest: plan.step_id)
    noting(DecodeLoop, "carry_out", lambda *_: 0)
    start("decode", fake_load(overlaps=True))
    router.welcome("decode")
    router.send("decode", reserve(1, PROMPT))
    collect(router, 1)
    steps = [step_id for name, step_id in happened if name == "launch"]
    assert len(steps) >= 10
    for before, ahead, after in zip(steps, steps[1:], steps[2:], strict=False):
        between = happened[happened.index(("launch", ahead)) + 1 : happened.index(("launch", after))]
        assert between == [("apply", before), ("carry_out", 0), ("carry_out", 0)]


class Lending(FakeEngine):
    """As an engine with a head."""

    lent: list[list[int]]

    def lend_blocks(self, block_ids: Sequence[int]) -> None:
        self.lent.append(list(block_ids))

    def read_hidden(self, block_id: int) -> memoryview | None:
        return None

    def write_hidden(self, block_id: int, payload: memoryview) -> None:
        raise AssertionError


def test_blocks_that_a_peer_may_write_are_lent_to_it() -> None:
    """Only if they are still the transfer's."""
    engine = Lending(64, BLOCK_SIZE, VOCAB_SIZE)
    engine.lent = []
    pool = BlockPool(engine.num_blocks, engine.block_size)
    scheduler = DecodeScheduler(pool, epoch="d", max_num_seqs=2, max_num_batched_tokens=64, max_model_len=64)
    registered: dict[str, PoolBlocks] = {}

    def register(transfer_id: str, num_blocks: int, store: object, blocks: PoolBlocks) -> None:
        registered[transfer_id] = blocks

    receiver: Any = SimpleNamespace(endpoint="", register=register, abandon=lambda transfer_id: None)
    loop = DecodeLoop(scheduler, Loaded(engine, FAKE, 64), receiver)
    for placement in (1, 2):
        loop.on_message(reserve(placement, PROMPT[:20], remote=True), 0.0)
    loop.carry_out(lambda message: None)
    first, second = registered.values()
    loop.on_message(Cancel(2), 0.0)
    assert first.claim()
    assert not second.claim()
    assert engine.lent == [list(first.block_ids)]


@pytest.mark.parametrize("overlaps", [True, False])
def test_prefill_hands_over_to_decode(
    router: ScriptedRouter, start: Callable[..., WorkerThread], overlaps: bool
) -> None:
    start("decode", fake_load(overlaps))
    start("prefill", fake_load(overlaps))
    (endpoint,) = router.welcome("decode").data_endpoints
    router.welcome("prefill")
    for placement, num_choices in [(1, 1), (2, 3)]:  # the second time both sides have the prompt's first blocks
        router.send("decode", reserve(placement, PROMPT, remote=True, num_choices=num_choices))
        reserved = router.expect(Reserved)
        assert (reserved.num_cached_tokens > 0) == (placement == 2)
        router.send("prefill", prefill_message(placement, reserved, endpoint, PROMPT))
        outputs = collect(router, num_choices)
        assert outputs == {(placement, choice): expected(PROMPT, choice) for choice in range(num_choices)}
        prefilled = router.expect(Prefilled)
        assert prefilled.placement == placement
        assert prefilled.transfer_bytes > 0


def test_credit_comes_back_when_all_has_ended(router: ScriptedRouter, start: Callable[..., WorkerThread]) -> None:
    start("decode")
    router.welcome("decode")
    first = router.expect(Credit)
    assert first.seen == 0
    message = reserve(1, PROMPT)
    router.send("decode", message)
    collect(router, 1)
    await_credit(router, Credit(message.cost_blocks, first.free))


def test_cancel_is_answered_in_every_state(router: ScriptedRouter, start: Callable[..., WorkerThread]) -> None:
    start("decode", fake_load(step_s=0.02))
    start("prefill")
    (endpoint,) = router.welcome("decode").data_endpoints
    router.welcome("prefill")
    router.send("decode", Cancel(99))  # unknown
    assert router.expect(Cancelled, "decode") == Cancelled(99)
    router.send("prefill", Cancel(99))
    assert router.expect(Cancelled, "prefill") == Cancelled(99)
    router.send("decode", reserve(1, PROMPT, remote=True))  # reserved, nothing received
    reserved = router.expect(Reserved)
    router.send("decode", Cancel(1))
    assert router.expect(Cancelled) == Cancelled(1)
    router.send("prefill", prefill_message(1, reserved, endpoint, PROMPT))  # its KV finds no taker
    assert router.expect(Prefilled).placement == 1
    router.send("decode", reserve(2, PROMPT, max_tokens=90, num_choices=2))  # running
    router.expect(Tokens)
    router.send("decode", Cancel(2, 1))
    assert router.expect(Cancelled) == Cancelled(2, 1)
    router.send("decode", Cancel(2))
    assert router.expect(Cancelled) == Cancelled(2)
    router.send("decode", reserve(3, PROMPT))
    assert collect_after(router, 3) == expected(PROMPT)


def await_credit(router: ScriptedRouter, wanted: Credit) -> None:
    """Fails, in the end, if the worker never grants exactly that."""
    while router.expect(Credit) != wanted:
        pass


def collect_after(router: ScriptedRouter, placement: int) -> list[int]:
    output: list[int] = []
    while True:
        for row in router.expect(Tokens).rows:
            if row.placement == placement:
                output += row.token_ids
                if row.finish_reason:
                    return output


def test_a_transfer_to_nowhere_fails_that_placement_alone(
    router: ScriptedRouter, start: Callable[..., WorkerThread]
) -> None:
    start("decode")
    router.welcome("decode")
    router.send("decode", reserve(1, PROMPT, remote=True))
    assert router.expect(Reserved).transfer_id
    router.send("decode", reserve(2, PROMPT))
    assert collect(router, 1) == {(2, 0): expected(PROMPT)}


def test_what_never_fits_fails_and_what_does_not_fit_now_is_declined(
    router: ScriptedRouter, start: Callable[..., WorkerThread]
) -> None:
    start("decode", fake_load(num_blocks=32))
    router.welcome("decode")
    router.send("decode", reserve(1, list(range(300))))
    failed = router.expect(Failed)
    assert (failed.placement, failed.retriable) == (1, False)
    router.send("decode", reserve(2, list(range(100)), remote=True))
    assert router.expect(Reserved).placement == 2
    router.send("decode", reserve(3, list(range(100, 200)), remote=True))
    assert router.expect(Declined).placement == 3


def test_a_new_router_finds_a_clean_worker(router: ScriptedRouter, start: Callable[..., WorkerThread]) -> None:
    start("decode", fake_load(step_s=0.02))
    router.welcome("decode")
    free = router.expect(Credit).free
    router.send("decode", reserve(1, PROMPT, max_tokens=90))
    router.expect(Tokens)
    router.send("decode", SayHello())
    router.welcome("decode")
    router.all_unread(Tokens)
    router.all_unread(Credit)
    router.send("decode", reserve(2, PROMPT))
    assert collect(router, 1) == {(2, 0): expected(PROMPT)}
    await_credit(router, Credit(reserve(2, PROMPT).cost_blocks, free))


def test_heartbeats_go_on_during_a_long_step(router: ScriptedRouter, start: Callable[..., WorkerThread]) -> None:
    start("decode", fake_load(step_s=0.4))
    router.welcome("decode")
    router.send("decode", reserve(1, PROMPT, max_tokens=1))
    router.expect(Reserved)
    ages = []
    while not router.all_unread(Tokens):
        ages += [beat.step_age_s for beat in router.all_unread(Heartbeat)]
        time.sleep(0.01)
    assert max(ages) > 0.2
    time.sleep(0.1)
    router.all_unread(Heartbeat)
    assert router.expect(Heartbeat).step_age_s == 0


def test_loading_is_a_declared_state(router: ScriptedRouter, start: Callable[..., WorkerThread]) -> None:
    def slow_load(model: str) -> Loaded:
        time.sleep(0.3)
        return fake_load()(model)

    start("decode", slow_load)
    router.welcome("decode")
    states = [beat.state for beat in router.all_unread(Heartbeat)]
    assert states.count("loading") >= 3
    assert states == sorted(states), "loading comes before ready"
    while router.expect(Heartbeat).state != "ready":
        pass


def test_a_refused_worker_ends_saying_why(router: ScriptedRouter, start: Callable[..., WorkerThread]) -> None:
    thread = start("decode")
    router.welcome("decode")
    router.send("decode", HelloRefused("the worker has another model"))
    thread.thread.join(10)
    assert isinstance(thread.error, Refused)
    assert str(thread.error) == "the worker has another model"


def test_a_worker_says_goodbye(router: ScriptedRouter, start: Callable[..., WorkerThread]) -> None:
    thread = start("prefill")
    router.welcome("prefill")
    thread.stop()
    assert router.expect(Goodbye) == Goodbye("told to stop")
    assert thread.error is None


def test_draining(router: ScriptedRouter, start: Callable[..., WorkerThread]) -> None:
    thread = start("decode", fake_load(step_s=0.01))
    router.welcome("decode")
    router.send("decode", reserve(1, PROMPT))
    router.expect(Reserved)
    router.send("decode", Drain())
    router.send("decode", reserve(2, PROMPT))
    assert router.expect(Declined).placement == 2
    assert collect(router, 1) == {(1, 0): expected(PROMPT)}
    assert router.expect(Goodbye) == Goodbye("drained")
    thread.thread.join(10)
    assert thread.error is None
