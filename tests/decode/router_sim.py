"""A router, a transport and a worker loop in one object, to drive a decode scheduler and a fake engine at random.

It re-queues what is declined or has failed, with its output, as a router would, and holds every finished sequence
against the oracle.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from isthmus.decode.scheduler import DecodeScheduler
from isthmus.engine.block_pool import BlockPool
from isthmus.engine.fake_engine import FakeEngine
from isthmus.engine.plan import Handle, Plan, Row
from isthmus.wire.codec import pack_ids
from isthmus.wire.messages import (
    Cancel,
    Cancelled,
    Choice,
    Credit,
    Declined,
    Failed,
    FromWorker,
    Reserve,
    Reserved,
    TokenRow,
    Tokens,
)
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams

EOS = 0
VOCAB = 50


@dataclass
class Request:
    prompt: list[int]
    params: SamplingParams
    num_choices: int = 1
    remote: bool = False
    outputs: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, TokenRow] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    ends: dict[int, TokenRow] = field(default_factory=dict)
    """The last row of each choice: with its state and epoch a replay goes on."""

    def live(self) -> list[int]:
        return [i for i in range(self.num_choices) if i not in self.finished and i not in self.cancelled]


@dataclass
class Transfer:
    """KV on its way, a block a piece."""

    block_ids: list[int]
    pieces: list[memoryview]
    logits: memoryview
    num_arrived: int = 0
    claimed: bool = False


class RouterSim:
    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int = 4,
        seed: int = 0,
        overlap: bool = False,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 32,
        max_model_len: int | None = None,
        eos_probability: float = 0.0,
        enable_prefix_caching: bool = True,
        fail_transfers: float = 0.0,
        claim_transfers: float = 0.0,
        token_ids: Sequence[int] | None = None,
        **options: Any,
    ):
        self.random = random.Random(seed)
        self.overlap = overlap
        self.max_model_len = max_model_len or num_blocks * block_size
        self.engine = FakeEngine(
            num_blocks, block_size, VOCAB, token_ids=token_ids, eos_id=EOS, eos_probability=eos_probability
        )
        self.remote_engine = FakeEngine(num_blocks, block_size, VOCAB)
        self.pool = BlockPool(num_blocks, block_size, enable_prefix_caching)
        self.scheduler = DecodeScheduler(
            self.pool,
            epoch="d",
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=self.max_model_len,
            **options,
        )
        self.fail_transfers = fail_transfers
        self.claim_transfers = claim_transfers
        self.now = 0.0
        self.step: Handle | None = None
        self.plans: list[Plan] = []
        self.queue: list[tuple[Request, list[int]]] = []
        self.placed: dict[int, tuple[Request, list[int]]] = {}
        self.transfers: dict[str, Transfer] = {}
        self.quarantine: dict[str, Transfer] = {}
        self.messages: list[FromWorker] = []
        self.num_placements = 0
        self.costs_sent = 0
        self.credit = Credit(0, 0)

    # The router.

    def submit(self, request: Request) -> Request:
        request.outputs = {i: [] for i in range(request.num_choices)}
        self.queue.append((request, request.live()))
        return request

    def place(self, request: Request, choices: list[int]) -> int:
        """Sends a Reserve, whatever the credit."""
        self.num_placements += 1
        placement = self.num_placements
        self.placed[placement] = request, choices
        sent = tuple(self.choice(request, i) for i in choices)
        cost = self.cost(request, choices)
        self.costs_sent += cost
        self.scheduler.on_reserve(
            Reserve(placement, "r", pack_ids(request.prompt), sent, request.params, 0, cost, request.remote, (EOS,)),
            self.now,
        )
        return placement

    def choice(self, request: Request, index: int) -> Choice:
        last = request.ends.get(index)
        return Choice(index, pack_ids(request.outputs[index]), *((last.state, last.epoch) if last else ()))

    def cost(self, request: Request, choices: list[int]) -> int:
        return (len(request.prompt) + len(request.outputs[choices[0]])) // self.pool.block_size + len(choices)

    def place_what_fits(self) -> None:
        while self.queue:
            request, choices = self.queue[0]
            choices = [i for i in choices if i in request.live()]
            available = self.credit.free - (self.costs_sent - self.credit.seen)
            if choices and self.cost(request, choices) > available:
                return
            self.queue.pop(0)
            if choices:
                self.place(request, choices)

    def cancel(self, request: Request, choice: int | None = None) -> None:
        """As a client that goes away: wherever the request is."""
        request.cancelled.update(request.live() if choice is None else [choice])
        for placement, (placed, _) in list(self.placed.items()):
            if placed is request:
                self.scheduler.on_cancel(Cancel(placement, choice), self.now)

    def cancel_something(self) -> None:
        """Picks a state first: a placement the router knows, or one of the queue."""
        requests = [request for request, _ in [*self.placed.values(), *self.queue] if request.live()]
        if requests:
            request = self.random.choice(requests)
            choice = self.random.choice(request.live())
            self.cancel(request, choice if self.random.random() < 0.5 else None)

    def on_message(self, message: FromWorker) -> None:
        self.messages.append(message)
        match message:
            case Credit():
                assert message.free >= 0
                self.credit = message
            case Reserved():
                assert message.num_cached_tokens % self.pool.block_size == 0
                if message.transfer_id in self.transfers:
                    self.send_kv(message)
            case Tokens():
                for row in message.rows:
                    self.on_tokens(row)
            case Declined():
                _, choices = self.placed[message.placement]
                back = choices if message.choice is None else [message.choice]
                self.requeue(message.placement, back, front=message.preempted)
            case Failed():
                assert message.retriable, message.error
                self.requeue(message.placement, self.placed[message.placement][1], front=False)
            case Cancelled():
                self.leave(message.placement, None if message.choice is None else message.choice)

    def on_tokens(self, row: TokenRow) -> None:
        request, choices = self.placed[row.placement]
        assert row.choice in choices
        assert row.choice not in request.cancelled, "a token after Cancelled"
        output = request.outputs[row.choice]
        assert row.position == len(output), "a gap"
        output += row.token_ids
        request.ends[row.choice] = row
        if row.finish_reason:
            request.finished[row.choice] = row
            self.leave(row.placement, row.choice)

    def leave(self, placement: int, choice: int | None) -> None:
        if placement not in self.placed:
            return
        request, choices = self.placed[placement]
        rest = [] if choice is None else [i for i in choices if i != choice]
        if rest:
            self.placed[placement] = request, rest
        else:
            del self.placed[placement]

    def requeue(self, placement: int, choices: list[int], front: bool) -> None:
        request = self.placed[placement][0]
        live = [i for i in choices if i in request.live()]
        groups = [[i] for i in live] if any(request.outputs[i] for i in live) else [live] if live else []
        for choice in choices:
            self.leave(placement, choice)
        again = [(request, group) for group in groups]
        self.queue = again + self.queue if front else self.queue + again

    # Prefill and transport.

    def send_kv(self, reserved: Reserved) -> None:
        request, choices = self.placed[reserved.placement]
        tokens = request.prompt + request.outputs[choices[0]]
        engine, size = self.remote_engine, self.pool.block_size
        table = list(range(-(-len(tokens) // size)))
        plan = Plan(0, (Row(0, tokens, 0, table, keep_logits=True),))
        logits = engine.launch(plan).result().logits[0]
        transfer = self.transfers[reserved.transfer_id]
        missing = table[reserved.num_cached_tokens // size :]
        assert len(missing) == len(transfer.block_ids)
        transfer.pieces = [engine.read_blocks([block]) for block in missing]
        transfer.logits = engine.pack_logits(logits)

    def deliver(self) -> None:
        """Some piece of some transfer arrives, or its connection breaks."""
        if not self.transfers:
            return
        transfer_id = self.random.choice(list(self.transfers))
        transfer = self.transfers[transfer_id]
        if not transfer.num_arrived and self.random.random() < self.claim_transfers:
            transfer.claimed = self.scheduler.on_claim(transfer_id)
            if not transfer.claimed:
                return
        if self.random.random() < self.fail_transfers:
            self.end_transfer(transfer_id)
            self.scheduler.on_transfer_failed(transfer_id, "connection lost", self.now)
            return
        index = transfer.num_arrived
        self.engine.write_blocks([transfer.block_ids[index]], transfer.pieces[index])
        transfer.num_arrived += 1
        self.scheduler.on_receiving(transfer_id)
        if transfer.num_arrived == len(transfer.pieces):
            del self.transfers[transfer_id]
            self.scheduler.on_received(transfer_id, self.engine.unpack_logits(transfer.logits), self.now)

    def end_transfer(self, transfer_id: str) -> None:
        transfer = self.transfers.pop(transfer_id, None)
        if transfer is not None and transfer.claimed:
            self.quarantine[transfer_id] = transfer

    def release(self) -> None:
        """A claimed transfer's writer stops at last: until now it has written whatever it liked."""
        if self.quarantine:
            transfer_id = self.random.choice(list(self.quarantine))
            block_ids = self.quarantine.pop(transfer_id).block_ids
            garbage = memoryview(self.random.randbytes(len(block_ids) * self.engine.bytes_per_block))
            self.engine.write_blocks(block_ids, garbage)
            self.scheduler.on_released(transfer_id)

    # The worker loop.

    def carry_out(self) -> None:
        effects = self.scheduler.take_effects()
        for seq_id in effects.retire:
            self.engine.retire(seq_id)
        for seed in effects.admit:
            self.engine.admit(seed)
        for transfer_id in effects.abandon:
            self.end_transfer(transfer_id)
        for receive in effects.receive:
            self.transfers[receive.transfer_id] = Transfer(list(receive.block_ids), [], memoryview(b""))
        for message in effects.messages:
            self.on_message(message)
        self.scheduler.check()

    def turn(self) -> None:
        """Once around the loop: a step in flight is applied after the next was launched."""
        self.now += 0.1
        if self.random.random() < 0.3:
            self.release()
        plan = self.scheduler.plan(self.now, self.step.plan if self.step else None)
        self.carry_out()
        ahead = self.engine.launch(plan) if plan else None
        if plan:
            self.plans.append(plan)
        if self.step:
            self.finish(self.step)
        self.step = ahead
        if self.step and not self.overlap:
            self.finish(self.step)
            self.step = None
        self.carry_out()

    def finish(self, step: Handle) -> None:
        self.now += 0.01
        self.scheduler.apply(step.plan, step.result(), self.now)

    def run(self, max_turns: int = 20_000) -> None:
        """Until everything is done."""
        for _ in range(max_turns):
            if not (self.queue or self.placed or self.step or self.quarantine):
                break
            self.place_what_fits()
            self.deliver()
            self.turn()
        self.assert_empty()

    def assert_empty(self) -> None:
        assert not self.queue, "stuck"
        assert not self.placed, "stuck"
        assert self.scheduler.empty
        assert self.scheduler.idle
        assert self.pool.num_used == 0
        assert not self.scheduler.placements()

    # The oracle.

    def expected(self, request: Request, choice: int) -> list[int]:
        params = request.params
        room = self.max_model_len - len(request.prompt)
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else {EOS})
        key = philox_key(params.seed & (2**64 - 1), 0, choice)
        tokens = self.engine.expected_tokens(request.prompt, key, limit, stops, params.min_tokens)
        ends = [i for i, token in enumerate(tokens) if token in stops]
        return tokens[: ends[0] + 1] if ends else tokens

    def assert_exact(self, request: Request) -> None:
        for choice, output in request.outputs.items():
            expected = self.expected(request, choice)
            if choice in request.finished:
                row = request.finished[choice]
                stopped = len(output) < len(expected) or row.stop_token_id is not None
                assert output == expected
                assert row.finish_reason == ("stop" if stopped else "length")
            else:
                assert choice in request.cancelled
                assert output == expected[: len(output)]


def random_requests(rng: random.Random, count: int, max_prompt: int, max_tokens: int) -> Iterator[Request]:
    """Prompts of which many share a prefix."""
    stem = [rng.randrange(1, VOCAB) for _ in range(max_prompt)]
    for _ in range(count):
        length = rng.randint(1, max_prompt)
        shared = rng.randint(0, length)
        prompt = stem[:shared] + [rng.randrange(1, VOCAB) for _ in range(length - shared)]
        prompt_only = rng.random() < 0.1
        min_tokens = 0 if prompt_only else rng.choice([0, 0, 3])
        params = SamplingParams(
            seed=rng.randrange(2**40),
            max_tokens=0 if prompt_only else rng.randint(max(1, min_tokens), max_tokens),
            min_tokens=min_tokens,
            ignore_eos=rng.random() < 0.3,
            stop_token_ids=(rng.randrange(1, VOCAB),) if rng.random() < 0.5 else (),
        )
        yield Request(prompt, params, rng.choice([1, 1, 1, 2, 3]), rng.random() < 0.5 and not prompt_only)
