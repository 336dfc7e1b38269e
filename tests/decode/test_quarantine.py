"""Blocks that a peer writes itself are nobody else's until it says that it has stopped."""

from collections.abc import Callable

import pytest
from isthmus.decode.quarantine import PATIENCE_S
from isthmus.decode.scheduler import DecodeScheduler
from isthmus.decode.worker import DecodeLoop
from isthmus.engine.block_pool import BlockPool
from isthmus.engine.fake_engine import FakeEngine
from isthmus.engine.plan import Result
from isthmus.engine.worker import Loaded
from isthmus.kvtransfer.leased_receiver import LeasedReceiver
from isthmus.kvtransfer.transport import NO_BLOCKS, Event, Failed, PoolBlocks, Released, Store
from isthmus.tests.scripted_router import FAKE, reserve
from isthmus.wire.codec import pack_ids
from isthmus.wire.messages import Cancel, Choice, Declined, FromWorker, Reserve, Reserved
from isthmus.wire.sampling import SamplingParams

PROMPT = list(range(1, 11))  # three blocks of four tokens


class Bench:
    def __init__(self, num_blocks: int = 8):
        self.pool = BlockPool(num_blocks, 4)
        self.scheduler = DecodeScheduler(
            self.pool, epoch="d", max_num_seqs=4, max_num_batched_tokens=16, max_model_len=num_blocks * 4
        )

    def reserve(self, placement: int, prompt: list[int], remote: bool = True) -> str:
        """The transfer id."""
        params = SamplingParams()
        choices = (Choice(0),)
        self.scheduler.on_reserve(Reserve(placement, "r", pack_ids(prompt), choices, params, 0, 1, remote), 0.0)
        (reserved,) = [m for m in self.scheduler.take_effects().messages if isinstance(m, Reserved)]
        return reserved.transfer_id

    def step(self, now: float = 0.0) -> bool:
        """Whether there was one."""
        plan = self.scheduler.plan(now, None)
        self.scheduler.check()
        if plan is None:
            return False
        self.scheduler.apply(plan, Result([7] * len(plan.draws)), now)
        self.scheduler.check()
        return True


@pytest.mark.parametrize("end", ["cancelled", "failed", "router gone"])
def test_claimed_blocks_outlive_their_placement(end: str) -> None:
    bench = Bench()
    transfer_id = bench.reserve(1, PROMPT)
    assert bench.scheduler.on_claim(transfer_id)
    if end == "cancelled":
        bench.scheduler.on_cancel(Cancel(1), 0.0)
    elif end == "failed":
        bench.scheduler.on_transfer_failed(transfer_id, "gone", 0.0)
    else:
        bench.scheduler.on_welcome(0.0)
    assert bench.scheduler.empty
    bench.scheduler.check()
    assert bench.pool.num_used == 3
    bench.scheduler.on_released(transfer_id)
    bench.scheduler.check()
    assert bench.pool.num_used == 0


def test_blocks_that_were_not_claimed_are_free_at_once_and_cannot_be_claimed_any_more() -> None:
    bench = Bench()
    transfer_id = bench.reserve(1, PROMPT)
    bench.scheduler.on_cancel(Cancel(1), 0.0)
    assert bench.pool.num_used == 0
    assert not bench.scheduler.on_claim(transfer_id)


def test_what_was_received_needs_no_release() -> None:
    bench = Bench()
    transfer_id = bench.reserve(1, PROMPT)
    assert bench.scheduler.on_claim(transfer_id)
    bench.scheduler.on_received(transfer_id, "logits", 0.0)
    bench.scheduler.on_cancel(Cancel(1), 0.0)
    bench.scheduler.check()
    assert bench.pool.num_used == 0


def test_a_transfer_that_ends_in_the_turn_in_which_it_is_cancelled_keeps_no_blocks() -> None:
    """The transport has told of its end, so that `abandon`, which comes after, finds nothing to release."""
    bench = Bench()
    transfer_id = bench.reserve(1, PROMPT)
    assert bench.scheduler.on_claim(transfer_id)
    bench.scheduler.on_cancel(Cancel(1), 0.0)
    assert bench.pool.num_used == 3
    bench.scheduler.on_received(transfer_id, "logits", 0.0)
    bench.scheduler.check()
    assert bench.pool.num_used == 0


def test_the_last_sequence_waits_as_long_as_a_quarantine_lasts() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, remote=False)
    assert bench.step()
    transfer_id = bench.reserve(2, PROMPT)
    assert bench.scheduler.on_claim(transfer_id)
    bench.scheduler.on_transfer_failed(transfer_id, "gone", 0.0)
    while bench.step():
        pass
    assert bench.pool.num_free == 0
    assert not bench.step(2 * PATIENCE_S)
    assert bench.scheduler.placements() == [1]
    bench.scheduler.on_released(transfer_id)
    assert bench.step(2 * PATIENCE_S)


def test_only_blocks_that_are_received_are_kept() -> None:
    """Those of a cached prefix are not written."""
    bench = Bench()
    transfer_id = bench.reserve(1, PROMPT[:8])
    bench.scheduler.on_received(transfer_id, "logits", 0.0)
    bench.scheduler.on_cancel(Cancel(1), 0.0)
    transfer_id = bench.reserve(2, PROMPT)
    assert bench.scheduler.on_claim(transfer_id)
    assert bench.pool.num_used == 3
    bench.scheduler.on_cancel(Cancel(2), 0.0)
    assert bench.pool.num_used < 3
    bench.scheduler.on_released(transfer_id)
    bench.scheduler.check()
    assert bench.pool.num_used == 0


def test_a_sequence_waits_for_blocks_in_quarantine_but_not_for_long() -> None:
    bench = Bench(num_blocks=8)
    bench.reserve(1, PROMPT[:3], remote=False)
    assert bench.step()
    middle = bench.reserve(2, [20] * 12)
    youngest = bench.reserve(3, [30] * 11)
    for transfer_id in (middle, youngest):
        assert bench.scheduler.on_claim(transfer_id)
    assert bench.step()  # the first block is full
    assert not bench.step(1.0)  # the youngest gave way, and its blocks are on their way back
    assert bench.scheduler.placements() == [1, 2]
    assert not bench.step(1.0 + PATIENCE_S / 2)
    assert bench.scheduler.placements() == [1, 2]
    assert bench.step(1.0 + PATIENCE_S)  # its peer seems to be stuck: the next one has to go
    assert bench.scheduler.placements() == [1]
    declined = [m for m in bench.scheduler.take_effects().messages if isinstance(m, Declined)]
    assert [message.placement for message in declined] == [3, 2]
    for transfer_id in (middle, youngest):
        bench.scheduler.on_released(transfer_id)
        bench.scheduler.check()


class ScriptedReceiver:
    """Gives the events that a test puts in."""

    endpoint = "test:"

    def __init__(self) -> None:
        self.registered: dict[str, PoolBlocks] = {}
        self.abandoned: list[str] = []
        self.events: list[Event] = []

    def register(self, transfer_id: str, num_blocks: int, store: Store, blocks: PoolBlocks = NO_BLOCKS) -> None:
        self.registered[transfer_id] = blocks

    def abandon(self, transfer_id: str) -> None:
        self.abandoned.append(transfer_id)

    def poll(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def close(self) -> None: ...


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_the_worker_loop_carries_claims_and_releases(end: str) -> None:
    engine, receiver = FakeEngine(8, 4, 1000), ScriptedReceiver()
    pool = BlockPool(8, 4)
    scheduler = DecodeScheduler(pool, epoch="d", max_num_seqs=4, max_num_batched_tokens=16, max_model_len=32)
    loop = DecodeLoop(scheduler, Loaded(engine, FAKE, 32), LeasedReceiver([receiver], lease_s=10))
    messages: list[FromWorker] = []
    send: Callable[[FromWorker], None] = messages.append
    loop.on_message(reserve(1, PROMPT, remote=True), 0.0)
    loop.carry_out(send)
    ((transfer_id, blocks),) = receiver.registered.items()
    assert len(blocks.block_ids) == 3
    assert blocks.claim()
    assert scheduler._placed.prompts[1].untouched
    blocks.landed()
    assert not scheduler._placed.prompts[1].untouched
    if end == "cancelled":
        loop.on_message(Cancel(1), 0.0)
        assert not blocks.claim()
        loop.carry_out(send)
        assert receiver.abandoned == [transfer_id]
    else:
        receiver.events = [Failed(transfer_id, "its sender is gone")]
        loop.poll_transfers(0.0)
    assert pool.num_used == 3
    receiver.events = [Released(transfer_id)]
    loop.poll_transfers(0.0)
    assert pool.num_used == 0
    scheduler.check()
