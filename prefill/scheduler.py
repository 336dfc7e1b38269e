"""Chunked prefill for one worker: which prompts' tokens the next step computes, and which blocks may be sent.

Pure decisions: no torch, no sockets, no clock. The worker loop calls, in this order and any number of times,

    on_…(message or transport event, now)
    plan(now, in_flight) -> Plan | None, take_effects(), engine.launch(plan)
    apply(oldest plan, its result, now), take_effects()

Effects are carried out before the launch that follows them: what is sent must be read before its blocks can be
written again. At most one plan is in flight when another is made, and plans are applied in order.

Prompts get blocks first come, first served, all at once; those that have them share each step as `split_budget`
says. So the oldest prompt always goes on, and blocks come back when a transfer is done. Full blocks join the prefix
cache as soon as they are computed, and are sent just as soon.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.block_pool import BlockPool
from ..engine.paged_prompt import hash_prompt, reserve_prompt
from ..engine.plan import Plan, Result, Row
from ..engine.pooling import Pooler, needs_all
from ..engine.step_meter import StepMeter
from ..wire.codec import unpack_ids
from ..wire.logprobs import TokenLogprobs, pack_logprobs
from ..wire.messages import (
    Cancel,
    Cancelled,
    Credit,
    Failed,
    Pooled,
    Prefill,
    Prefilled,
    PromptLogprobs,
    WorkerStats,
)
from .budget import Split, split_budget
from .effects import Effects
from .job import Job


@dataclass(frozen=True, slots=True)
class Flight:
    plan: Plan
    chunks: list[tuple[Job, int]]
    """Prompts, in the order of the rows, and how many of their tokens are computed."""
    start_s: float


class PrefillScheduler:
    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        max_chunk_tokens: int | None = None,
        split: Split = split_budget,
    ):
        """At most `max_num_seqs` prompts are computed at once, and share each step as `split` says. Raises ValueError
        if the sizes cannot work."""
        if max_num_batched_tokens < 2 or max_num_seqs < 1 or (max_chunk_tokens is not None and max_chunk_tokens < 1):
            raise ValueError(
                f"max_num_seqs ({max_num_seqs}) and max_chunk_tokens ({max_chunk_tokens}) must be positive, "
                f"max_num_batched_tokens ({max_num_batched_tokens}) at least 2"
            )
        if max_model_len > pool.num_blocks * pool.block_size:
            raise ValueError(
                f"max_model_len ({max_model_len}) does not fit the KV pool of {pool.num_blocks} blocks of "
                f"{pool.block_size} tokens"
            )
        self.pool = pool
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_chunk_tokens = max_chunk_tokens or max_num_batched_tokens
        self._split = split
        self._max_model_len = max_model_len
        self._jobs: dict[int, Job] = {}  # by placement, oldest first
        self._flights: deque[Flight] = deque()
        self._effects = Effects()
        self._draining = False
        self._num_sequences = 0
        self._num_steps = 0
        self._credit: Credit | None = None
        self._seen_tokens = 0
        self._meter = StepMeter()
        self._prefix_hit_tokens = 0
        self._prefix_query_tokens = 0
        self._transfer_bytes = 0
        self._transfer_s = 0.0

    # Messages from the router.

    def on_prefill(self, msg: Prefill, now: float) -> None:
        """Answers Failed if it never fits, or if the worker is draining. Raises ValueError if the placement is
        known."""
        if msg.placement in self._jobs:
            raise ValueError(f"placement {msg.placement} was sent twice")
        self._seen_tokens += msg.cost_tokens
        if refusal := self._refusal(msg):
            self._effects.messages.append(Failed(msg.placement, refusal, retriable=False))
        elif self._draining:
            self._effects.messages.append(Failed(msg.placement, "draining", retriable=True))
        else:
            token_ids = unpack_ids(msg.token_ids)
            hashes = hash_prompt(self.pool, token_ids, msg.salt)
            first_block = msg.first_token // self.pool.block_size
            job = Job(msg, self._num_sequences, token_ids, hashes, first_block, first_block)
            job.pooler = None if msg.pooling is None else Pooler(msg.pooling, len(token_ids))
            self._jobs[msg.placement] = job
            self._num_sequences += 1

    def on_cancel(self, msg: Cancel, now: float) -> None:
        """Always answers Cancelled. Blocks that a plan in flight uses are freed when it is applied."""
        job = self._jobs.get(msg.placement)
        if job is not None:
            self._abandon(job)
            self._end(job)
        self._effects.messages.append(Cancelled(msg.placement, msg.choice))

    def on_welcome(self, now: float) -> None:
        """A router has registered this worker, perhaps anew: what was placed before is void, credit starts again."""
        for placement in self.placements():
            self.on_cancel(Cancel(placement), now)
        self._effects.messages.clear()
        self._seen_tokens, self._credit = 0, None

    def on_drain(self) -> None:
        """From now on every Prefill fails."""
        self._draining = True

    # Events of the transport. Transfers that are not known any more are ignored: they were abandoned.

    def on_sent(self, transfer_id: str, num_bytes: int, now: float) -> None:
        """The transport needs the blocks of the transfer no more."""
        job = self._job_of(transfer_id)
        if job is None:
            return
        assert job.paged is not None
        assert job.computed, f"{transfer_id} is done before it was all sent"
        transfer_s = now - (job.began_s + job.compute_s)
        self._transfer_bytes += num_bytes
        self._transfer_s += transfer_s
        placement, num_cached = job.message.placement, job.paged.num_cached
        self._effects.messages.append(Prefilled(placement, num_cached, job.compute_s, num_bytes, transfer_s))
        self._end(job)

    def on_send_failed(self, transfer_id: str, error: str, now: float) -> None:
        job = self._job_of(transfer_id)
        if job is None:
            return
        self._effects.messages.append(Failed(job.message.placement, error, retriable=True))
        self._abandon(job)
        self._end(job)

    # Steps.

    def plan(self, now: float, in_flight: Plan | None) -> Plan | None:
        """The next step; None if there is nothing to compute until a message, an event or the plan in flight."""
        assert in_flight is (self._flights[-1].plan if self._flights else None)
        assert len(self._flights) < 2, "two plans are in flight"
        self._allocate()
        jobs = [job for job in self._jobs.values() if job.paged is not None and job.num_unplanned]
        if not jobs:
            return None
        wanted = [min(job.num_unplanned, self._max_chunk_tokens) for job in jobs]
        grants = self._split(wanted, self._max_num_batched_tokens)
        chunks = [(job, num_tokens) for job, num_tokens in zip(jobs, grants, strict=True) if num_tokens]
        self._num_steps += 1
        plan = Plan(self._num_steps, tuple(self._plan_chunk(job, num_tokens, now) for job, num_tokens in chunks))
        self._flights.append(Flight(plan, chunks, now))
        return plan

    def apply(self, plan: Plan, result: Result, now: float) -> None:
        """Takes in what the oldest plan in flight gave."""
        flight = self._flights.popleft()
        assert flight.plan is plan, "plans are applied in the order they were made"
        self._meter.record(flight.start_s, now, plan.num_tokens)
        for job, num_tokens in flight.chunks:
            assert job.paged is not None
            job.pending -= 1
            job.paged.advance(num_tokens, self.pool)
            if job.ended:
                self._land(job)
                continue
            self._take_logprobs(job, result.prompt_logprobs.get(job.seq_id, ()))
            if job.pooler is not None and job.seq_id in result.pooled:
                job.pooler.add(result.pooled[job.seq_id])
            if job.computed:
                job.compute_s = now - job.began_s
            if not job.sends:
                self._finish_computed(job)
            elif piece := job.next_piece(self.pool.block_size, result.logits.get(job.seq_id)):
                self._effects.send.append(piece)

    def take_effects(self) -> Effects:
        """What is to be done since the last call, with the credit if it changed."""
        credit = Credit(self._seen_tokens, self._num_acceptable)
        if credit != self._credit:
            self._credit = credit
            self._effects.messages.append(credit)
        effects, self._effects = self._effects, Effects()
        return effects

    # Reports.

    @property
    def idle(self) -> bool:
        """Nothing to compute and nothing in flight: only a message or an event of the transport can change that."""
        return not self._flights and not any(job.num_unplanned for job in self._jobs.values())

    @property
    def empty(self) -> bool:
        """No placement is left."""
        return not self._jobs and not self._flights

    def placements(self) -> list[int]:
        """Those that were accepted and have not ended."""
        return list(self._jobs)

    def stats(self) -> WorkerStats:
        waiting = [job for job in self._jobs.values() if job.paged is None]
        return WorkerStats(
            num_blocks_used=self.pool.num_used,
            num_running=len(self._jobs) - len(waiting),
            num_waiting=len(waiting),
            num_waiting_tokens=self._num_unplanned,
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            decode_step_s=self._meter.decode_step_s,
            prefix_hit_tokens=self._prefix_hit_tokens,
            prefix_query_tokens=self._prefix_query_tokens,
            transfer_bytes=self._transfer_bytes,
            transfer_s=self._transfer_s,
        )

    def check(self) -> None:
        """Raises AssertionError if the scheduler's books or the pool's do not add up. O(pool)."""
        flown = [job for flight in self._flights for job, _ in flight.chunks]
        jobs = list({id(job): job for job in [*self._jobs.values(), *flown]}.values())
        for job in jobs:
            assert job.pending == sum(job is other for other in flown)
            assert job.ended == (self._jobs.get(job.message.placement) is not job)
            if job.paged is not None:
                paged = job.paged
                assert paged.num_cached <= paged.num_computed <= paged.num_planned <= paged.num_tokens
        self.pool.check([job.blocks for job in jobs])

    # Planning.

    def _refusal(self, msg: Prefill) -> str | None:
        """Why it will never be computed; None if there is no reason."""
        num_tokens, rest = divmod(len(msg.token_ids), 4)
        if rest:
            return "token ids that are not int32"
        if msg.first_token % self.pool.block_size or not 0 <= msg.first_token < num_tokens:
            return f"{num_tokens} tokens, to be sent from token {msg.first_token} on"
        if num_tokens > self._max_model_len:
            return f"the prompt has {num_tokens} tokens, the context holds {self._max_model_len}"
        if bool(msg.data_endpoint) != bool(msg.transfer_id):
            return "an endpoint without a transfer id, or the other way round"
        if msg.prompt_logprobs is not None and not 0 < msg.prompt_len <= num_tokens:
            return f"logprobs of a prompt of {msg.prompt_len} among {num_tokens} tokens"
        if msg.pooling is not None and msg.data_endpoint:
            return "a vector of a prompt whose KV is sent"
        return None

    @property
    def _num_unplanned(self) -> int:
        return sum(job.num_unplanned for job in self._jobs.values())

    @property
    def _num_acceptable(self) -> int:
        """About two steps ahead."""
        return 0 if self._draining else max(0, 2 * self._max_num_batched_tokens - self._num_unplanned)

    def _allocate(self) -> None:
        """Blocks for prompts that wait, in the order they came, as long as there are enough."""
        num_computing = sum(job.paged is not None and bool(job.num_unplanned) for job in self._jobs.values())
        for job in [job for job in self._jobs.values() if job.paged is None]:
            if num_computing >= self._max_num_seqs:
                return
            num_blocks = -(-len(job.token_ids) // self.pool.block_size)
            match = job.message.prompt_logprobs is None and not needs_all(job.message.pooling)
            job.paged = reserve_prompt(self.pool, job.token_ids, job.hashes, num_blocks, match=match)
            if job.paged is None:
                return
            num_computing += 1
            self._prefix_query_tokens += job.paged.num_tokens
            self._prefix_hit_tokens += job.paged.num_cached

    def _plan_chunk(self, job: Job, num_tokens: int, now: float) -> Row:
        assert job.paged is not None
        if job.paged.num_planned == job.paged.num_cached:
            job.began_s = now
        job.pending += 1
        ships_logits = job.sends and num_tokens == job.num_unplanned
        scoring = job.paged.scoring(num_tokens, job.message.prompt_len, job.message.prompt_logprobs)
        pooling = job.paged.pooling(num_tokens, job.pooler)
        return job.paged.plan_row(job.seq_id, num_tokens, keep_logits=ships_logits, scoring=scoring, pooling=pooling)

    def _take_logprobs(self, job: Job, rows: Sequence[TokenLogprobs]) -> None:
        """They go with the KV; to the router where that is not sent."""
        if not rows:
            return
        assert job.message.prompt_logprobs is not None
        packed, num_top = pack_logprobs(rows, job.message.prompt_logprobs), job.message.prompt_logprobs
        if job.sends:
            job.prompt_logprobs += packed
            return
        position = job.num_scored + 1
        job.num_scored += len(rows)
        self._effects.messages.append(PromptLogprobs(job.message.placement, position, num_top, packed))

    # Leaving.

    def _job_of(self, transfer_id: str) -> Job | None:
        return next((job for job in self._jobs.values() if job.message.transfer_id == transfer_id), None)

    def _finish_computed(self, job: Job) -> None:
        """A prompt that is not sent has reached its end once it is computed."""
        if job.computed:
            assert job.paged is not None
            if job.pooler is not None:
                self._effects.messages.append(Pooled(job.message.placement, job.pooler.packed()))
            self._effects.messages.append(Prefilled(job.message.placement, job.paged.num_cached, job.compute_s, 0))
            self._end(job)

    def _abandon(self, job: Job) -> None:
        """Nothing more is sent: not even what the worker loop has not taken yet, for its blocks may be reused."""
        if not job.sends:
            return
        transfer_id = job.message.transfer_id
        self._effects.send = [piece for piece in self._effects.send if piece.transfer_id != transfer_id]
        self._effects.abandon.append(transfer_id)

    def _end(self, job: Job) -> None:
        del self._jobs[job.message.placement]
        job.ended = True
        self._land(job)

    def _land(self, job: Job) -> None:
        """Gives its blocks back, once no plan in flight uses them."""
        if not job.pending:
            self.pool.free(job.blocks)
