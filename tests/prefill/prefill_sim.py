"""A router, a transport and a worker loop in one object, to drive a prefill scheduler and a fake engine.

What is sent for a prompt is put into a second fake engine that has the KV before it, as a decode worker would; the
tokens drawn there must be the oracle's.
"""

import random
from dataclasses import dataclass, field

from isthmus.engine.block_pool import BlockPool
from isthmus.engine.fake_engine import FakeEngine
from isthmus.engine.plan import Draw, Handle, Plan, Row, SequenceSeed, ShippedDraw
from isthmus.prefill.effects import Send
from isthmus.prefill.scheduler import PrefillScheduler
from isthmus.wire.codec import pack_ids
from isthmus.wire.messages import Cancel, Cancelled, Credit, Failed, FromWorker, Pooling, Prefill, Prefilled
from isthmus.wire.sampling import SamplingParams

VOCAB = 50
KEY = (1, 2)


@dataclass
class Work:
    placement: int
    prompt: list[int]
    first_token: int
    sends: bool = True
    """False: it is to be computed, and stay here."""
    pieces: list[tuple[Send, memoryview]] = field(default_factory=list)
    logits: memoryview | None = None
    answer: Prefilled | Failed | Cancelled | None = None

    @property
    def transfer_id(self) -> str:
        return f"t{self.placement}" if self.sends else ""

    @property
    def data_endpoint(self) -> str:
        return "tcp://d" if self.sends else ""


class PrefillSim:
    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int = 4,
        overlap: bool = False,
        seed: int = 0,
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 16,
        enable_prefix_caching: bool = True,
        **options: int,
    ):
        self.random = random.Random(seed)
        self.overlap = overlap
        self.engine = FakeEngine(num_blocks, block_size, VOCAB)
        self.pool = BlockPool(num_blocks, block_size, enable_prefix_caching)
        self.scheduler = PrefillScheduler(
            self.pool,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=num_blocks * block_size,
            **options,
        )
        self.works: dict[int, Work] = {}
        self.messages: list[FromWorker] = []
        self.plans: list[Plan] = []
        self.credit = Credit(0, 0)
        self.costs_sent = 0
        self.now = 0.0
        self.step: Handle | None = None

    @property
    def available(self) -> int:
        return self.credit.free - (self.costs_sent - self.credit.seen)

    @property
    def in_transit(self) -> list[Work]:
        return [work for work in self.works.values() if work.pieces and work.answer is None]

    def submit(
        self,
        prompt: list[int],
        first_token: int = 0,
        sends: bool = True,
        *,
        prompt_len: int = 0,
        prompt_logprobs: int | None = None,
        pooling: Pooling | None = None,
        salt: bytes = b"",
    ) -> Work:
        work = Work(len(self.works), prompt, first_token, sends)
        self.works[work.placement] = work
        self.costs_sent += len(prompt)
        ids, cost = pack_ids(prompt), len(prompt)
        self.scheduler.on_prefill(
            Prefill(
                work.placement,
                "r",
                ids,
                first_token,
                work.data_endpoint,
                work.transfer_id,
                cost,
                prompt_len,
                prompt_logprobs,
                pooling,
                salt=salt,
            ),
            self.now,
        )
        return work

    def cancel(self, work: Work) -> None:
        self.scheduler.on_cancel(Cancel(work.placement), self.now)

    def sent(self, work: Work) -> None:
        self.scheduler.on_sent(work.transfer_id, sum(len(payload) for _, payload in work.pieces), self.now)

    def carry_out(self) -> None:
        effects = self.scheduler.take_effects()
        assert "" not in effects.abandon
        for send in effects.send:
            work = next(work for work in self.works.values() if work.transfer_id == send.transfer_id)
            assert work.sends
            assert work.answer is None
            assert work.logits is None, "a piece after the last"
            work.pieces.append((send, self.engine.read_blocks(send.block_ids)))
            if send.last:
                work.logits = self.engine.pack_logits(send.logits)
        self.messages += effects.messages
        for message in effects.messages:
            match message:
                case Credit():
                    self.credit = message
                case Prefilled() | Failed() | Cancelled():
                    self.works[message.placement].answer = message
        self.scheduler.check()

    def turn(self) -> None:
        self.now += 1
        plan = self.scheduler.plan(self.now, self.step.plan if self.step else None)
        self.carry_out()
        ahead = self.engine.launch(plan) if plan else None
        if plan:
            self.plans.append(plan)
        if self.step:
            self.scheduler.apply(self.step.plan, self.step.result(), self.now)
        self.step = ahead
        if self.step and not self.overlap:
            self.scheduler.apply(self.step.plan, self.step.result(), self.now)
            self.step = None
        self.carry_out()

    def run(self) -> None:
        """Until everything is computed and sent."""
        for _ in range(5000):
            if self.scheduler.empty:
                break
            for work in self.in_transit:
                if work.logits is not None and self.random.random() < 0.3:
                    self.sent(work)
            self.turn()
        self.carry_out()
        assert self.scheduler.empty
        assert self.scheduler.idle
        assert self.pool.num_used == 0

    def assert_exact(self, work: Work) -> None:
        """Decode goes on from what was sent."""
        size = self.pool.block_size
        engine = FakeEngine(self.pool.num_blocks + 1, size, VOCAB)
        table = list(range(self.pool.num_blocks + 1))
        if work.first_token:
            row = Row(0, work.prompt[: work.first_token], 0, table)
            engine.launch(Plan(0, (row,))).result()
        next_block = 0
        for send, payload in work.pieces:
            assert send.first_block == next_block, "a gap"
            next_block += len(send.block_ids)
            first = work.first_token // size + send.first_block
            engine.write_blocks(table[first : first + len(send.block_ids)], payload)
        assert next_block == -(-len(work.prompt) // size) - work.first_token // size
        assert work.logits is not None
        engine.admit(SequenceSeed(0, SamplingParams(), KEY, work.prompt, [], frozenset()))
        shipped = ShippedDraw(engine.unpack_logits(work.logits), (Draw(0, 0),))
        tokens = list(engine.launch(Plan(1, (), (shipped,))).result().token_ids)
        row = Row(0, tokens, len(work.prompt), table, (Draw(0, 1),))
        tokens += engine.launch(Plan(2, (row,))).result().token_ids
        assert tokens == self.engine.expected_tokens(work.prompt, KEY, 2)
