"""Continuous batching for one decode worker: who computes what in the next step, and what came of the last one.

Pure decisions: no torch, no sockets, no clock. The worker loop calls, in this order and any number of times,

    on_…(message or transfer event, now)
    plan(now, in_flight) -> Plan | None, take_effects(), engine.launch(plan)
    apply(oldest plan, its result, now), take_effects()

Effects are carried out before the launch that follows them: a sequence is admitted before its first draw, and a
revoked transfer is abandoned before its blocks are written by somebody else. Blocks that a peer had claimed, because
it writes them itself, stay in quarantine after their transfer's end until the transport has released them. At most one
plan is in flight when another is made, and plans are applied in order. Masks of a plan that was made meanwhile may be
asked for once the one before it has been applied.

A step holds one token of every running sequence, guesses of those after it as far as they pay, the first draws of
prompts that have arrived, and chunks of local prompts, first come first served, as far as the token budget goes. When
a running sequence finds no block, the youngest reservation that has received nothing is revoked, then the youngest work
is preempted: so the oldest always goes on, and since a single sequence fits the pool, everything ends.
"""

from collections import deque
from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..engine.block_pool import BlockPool
from ..engine.plan import Plan, Result
from ..engine.step_meter import StepMeter
from ..wire.logprobs import TokenLogprobs, pack_logprobs
from ..wire.messages import (
    Cancel,
    Cancelled,
    Credit,
    Declined,
    Failed,
    Pooled,
    PromptLogprobs,
    Reserve,
    TokenRow,
    Tokens,
    WorkerStats,
)
from .admission import Bounds
from .effects import Effects
from .flight import Flight
from .placements import Placements
from .prompt import Prompt, PromptState
from .reservations import Reservations
from .sequence import Drawn, Sequence
from .speculation import Speculation
from .step_guesses import StepGuesses

if TYPE_CHECKING:
    from .guidance import Guides
    from .phrase_ban import PhraseBans

WAITING_SHARE = 8
"""A step is not planned ahead of the one in flight where one in so many sequences could not be in it."""


class DecodeScheduler:
    def __init__(
        self,
        pool: BlockPool,
        *,
        epoch: str,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        watermark_blocks: int | None = None,
        max_chunk_tokens: int | None = None,
        guides: "Guides | None" = None,
        phrase_bans: "PhraseBans | None" = None,
        speculation: Speculation | None = None,
    ):
        """`epoch` makes transfer ids unique among workers and their lives. `watermark_blocks` (None: a hundredth of
        the pool) are kept free for growth when a placement is admitted beside others. Without `guides`, placements
        with a grammar are refused, without `phrase_bans` those with banned phrases; without `speculation` nothing is
        guessed. Raises ValueError if the sizes cannot work together."""
        if not 1 <= max_num_seqs <= max_num_batched_tokens:
            raise ValueError(
                f"max_num_batched_tokens ({max_num_batched_tokens}) must hold a token of each of max_num_seqs "
                f"({max_num_seqs}) sequences"
            )
        if max_model_len > pool.num_blocks * pool.block_size:
            raise ValueError(
                f"max_model_len ({max_model_len}) does not fit the KV pool of {pool.num_blocks} blocks of "
                f"{pool.block_size} tokens"
            )
        if max_chunk_tokens is not None and max_chunk_tokens < 1:
            raise ValueError(f"max_chunk_tokens must be positive, not {max_chunk_tokens}")
        self.pool = pool
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_chunk_tokens = max_chunk_tokens or max_num_batched_tokens
        self._guides = guides
        self._speculation = speculation or Speculation.none()
        self._reservations = Reservations(
            pool,
            Bounds(pool.num_blocks, pool.block_size, max_num_seqs, max_model_len),
            epoch=epoch,
            watermark_blocks=watermark_blocks,
            guides=guides,
            phrase_bans=phrase_bans,
            speculation=self._speculation,
        )
        self._guesses = StepGuesses(self._speculation, pool, self._reservations, max_num_batched_tokens)
        self._placed = Placements(pool, self._reservations)
        self._flights: deque[Flight] = deque()
        self._num_steps = 0
        self._waits_since: float | None = None
        """The next step has waited for the one in flight."""
        self._credit: Credit | None = None
        self._seen_blocks = 0
        self._meter = StepMeter()

    # Messages from the router.

    def on_reserve(self, msg: Reserve, now: float) -> None:
        """Answers Reserved, Declined (not now) or Failed (never). Raises ValueError if the placement is known."""
        if msg.placement in self._placed.ids:
            raise ValueError(f"placement {msg.placement} was sent twice")
        self._seen_blocks += msg.cost_blocks
        if refusal := self._reservations.refusal(msg):
            self._placed.effects.messages.append(Failed(msg.placement, refusal, retriable=False))
        elif reason := self._reservations.not_now(msg):
            self._placed.effects.messages.append(Declined(msg.placement, reason))
        elif (prompt := self._reservations.make(msg, now)) is None:
            self._placed.effects.messages.append(Declined(msg.placement, "no free blocks"))
        else:
            self._placed.add(prompt)

    def on_cancel(self, msg: Cancel, now: float) -> None:
        """Always answers Cancelled. Blocks that a plan in flight uses are freed when it is applied."""
        self._placed.stop(msg.placement, msg.choice)
        self._placed.effects.messages.append(Cancelled(msg.placement, msg.choice))

    def on_welcome(self, now: float) -> None:
        """A router has registered this worker, perhaps anew: what was placed before is void, credit starts again."""
        for placement in self._placed.ids:
            self.on_cancel(Cancel(placement), now)
        self._placed.effects.messages.clear()
        self._seen_blocks, self._credit = 0, None

    def on_drain(self) -> None:
        """From now on every Reserve is declined."""
        self._reservations.draining = True

    # Events of the transport. Transfers that are not known any more are ignored: they were abandoned.

    def on_receiving(self, transfer_id: str) -> None:
        """Bytes of the transfer have arrived: it is no longer the first to be revoked."""
        prompt = self._placed.prompt_of(transfer_id)
        if prompt is not None and prompt.state is PromptState.RESERVED:
            prompt.move(PromptState.RECEIVING)

    def on_claim(self, transfer_id: str) -> bool:
        """A peer asks to write the transfer's blocks itself. If True, they are not given to anybody else before it has
        been received, or released."""
        prompt = self._placed.prompt_of(transfer_id)
        if prompt is None:
            return False
        prompt.claimed = True
        return True

    def on_released(self, transfer_id: str) -> None:
        """The blocks of a claimed transfer that was abandoned, or failed, are not written any more."""
        self._placed.quarantine.release(transfer_id)

    def on_received(self, transfer_id: str, logits: Any, now: float, prompt_logprobs: bytes = b"") -> None:
        """All blocks are in the pool, and `logits` are those of the prompt's last position. `prompt_logprobs`: of its
        tokens from the second on, packed, where the request asks."""
        prompt = self._placed.prompt_of(transfer_id)
        if prompt is not None:
            prompt.receive_all(logits, self.pool)
            self._report_packed(prompt, 1, prompt_logprobs)
        elif transfer_id in self._placed.quarantine:
            self._placed.quarantine.release(
                transfer_id
            )  # it was given up a moment before its end, so the transport says no more

    def on_transfer_failed(self, transfer_id: str, error: str, now: float) -> None:
        prompt = self._placed.prompt_of(transfer_id)
        if prompt is not None:
            self._placed.effects.messages.append(Failed(prompt.placement, error, retriable=True))
            self._placed.drop(prompt)

    def on_refused(self, seq_id: int, error: str) -> None:
        """The engine cannot draw for a sequence that began: its placement fails."""
        placement = next((sequence.placement for sequence in self._placed.running if sequence.seq_id == seq_id), None)
        if placement is not None:
            self._placed.fail(placement, error)

    # Steps.

    def plan(self, now: float, in_flight: Plan | None) -> Plan | None:
        """The next step; None if there is nothing to compute until a message, an event or the plan in flight."""
        plan = self._plan(now, in_flight)
        if self._guides is not None:
            self._guides.begin_masks()
        return plan

    def _plan(self, now: float, in_flight: Plan | None) -> Plan | None:
        assert in_flight is (self._flights[-1].plan if self._flights else None)
        assert len(self._flights) < 2, "two plans are in flight"
        self._placed.now = now
        self._guesses.begin_step(self._placed.running, computes_prompts=self._placed.computes_prompts)
        if in_flight is not None and (self._guesses.are_awaited(self._placed.running) or self._many_wait()):
            self._wait(now)
            return None
        flight = Flight(now if self._waits_since is None else self._waits_since)
        self._waits_since = None
        plannable = [one for one in self._placed.running if one.plannable]
        may_guess = self._guesses.prepare(plannable)
        for sequence in plannable:
            if not sequence.ended and not sequence.condemned and self._has_block(sequence):
                if sequence.rewound:
                    self._begin_anew(sequence)
                drafts = self._guesses.of(sequence) if may_guess else ()
                flight.add_decode(sequence, self.pool.block_size, drafts)
        budget = self._max_num_batched_tokens - flight.num_decode_tokens
        for prompt in tuple(self._placed.prompts.values()):
            budget -= self._plan_prompt(prompt, budget, flight)
        self._guesses.end_step(flight)
        if flight.empty:
            return None
        self._num_steps += 1
        self._flights.append(flight)
        return flight.take_off(self._num_steps)

    def apply(self, plan: Plan, result: Result, now: float) -> None:
        """Takes in what the oldest plan in flight gave."""
        flight = self._flights.popleft()
        assert flight.plan is plan, "plans are applied in the order they were made"
        elapsed_s = self._meter.record(flight.start_s, now, flight.num_prompt_tokens)
        self._guesses.take_in(flight, result, elapsed_s)
        rows: list[TokenRow | None] = []
        for prompt, num_tokens in flight.chunks:
            prompt.pending -= 1
            position = prompt.paged.num_computed + 1
            prompt.paged.advance(num_tokens, self.pool)
            self._report(prompt, position, result.prompt_logprobs.get(prompt.row_seq_id, ()))
            self._pool(prompt, result)
            rows += self._placed.complete(prompt)
        drawn = result.drawn
        for sequence in flight.decoding:
            rows.append(self._accept(sequence, list(islice(drawn, 1 + sequence.num_drafts)), has_row=True))
        for sequence in flight.beginning:
            rows.append(self._accept(sequence, list(islice(drawn, 1)), has_row=False))
        assert next(drawn, None) is None, "more draws than were planned"
        if kept := tuple(row for row in rows if row is not None):
            self._placed.effects.messages.append(Tokens(kept))
        self.pool.free([source for source, _ in flight.copies])
        for prompt, _ in flight.chunks:
            self._placed.land(prompt)
        for sequence in flight.sequences:
            if sequence.ended or sequence.condemned:
                self._placed.land(sequence)
        for placement, error in flight.failures().items():
            self._placed.fail(placement, error)

    def take_effects(self) -> Effects:
        """What is to be done since the last call, with the credit if it changed."""
        credit = Credit(self._seen_blocks, self._reservations.num_reservable)
        if credit != self._credit:
            self._credit = credit
            self._placed.effects.messages.append(credit)
        return self._placed.take_effects()

    # Reports.

    @property
    def idle(self) -> bool:
        """Nothing to compute and nothing in flight: only a message or a transfer event can change that."""
        waiting = any(
            prompt.state in (PromptState.RECEIVED, PromptState.PREFILLING) for prompt in self._placed.prompts.values()
        )
        return not self._placed.running and not self._flights and not waiting

    @property
    def empty(self) -> bool:
        """No placement is left."""
        return not self._reservations.num_seqs and not self._flights

    def placements(self) -> list[int]:
        """Those that were accepted and have not ended."""
        return self._placed.ids

    def stats(self) -> WorkerStats:
        local = [prompt for prompt in self._placed.prompts.values() if prompt.state is PromptState.PREFILLING]
        return WorkerStats(
            num_blocks_used=self.pool.num_used,
            num_running=len(self._placed.running),
            num_waiting=sum(len(prompt.seq_ids) for prompt in self._placed.prompts.values()),
            num_waiting_tokens=sum(prompt.paged.num_tokens - prompt.paged.num_computed for prompt in local),
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            decode_step_s=self._meter.decode_step_s,
            num_preemptions=self._placed.num_preemptions,
            prefix_hit_tokens=self._reservations.prefix_hit_tokens,
            prefix_query_tokens=self._reservations.prefix_query_tokens,
            num_drafts=self._speculation.num_drafts,
            num_draft_tokens=self._speculation.num_draft_tokens,
            num_accepted_tokens=self._speculation.num_accepted_tokens,
            num_accepted_per_position=self._speculation.num_accepted_per_position,
        )

    def check(self) -> None:
        """Raises AssertionError if the scheduler's books or the pool's do not add up. O(pool)."""
        flown = {id(item): item for flight in self._flights for item in flight.sequences}
        sequences = list({**flown, **{id(item): item for item in self._placed.running}}.values())
        chunks = {id(prompt): prompt for flight in self._flights for prompt, _ in flight.chunks}
        ended = [prompt for prompt in chunks.values() if prompt.ended]
        prompts = [*self._placed.prompts.values(), *ended]
        assert self._placed.running == sorted(self._placed.running, key=lambda sequence: sequence.age)
        assert self._reservations.num_seqs == len(sequences) + sum(len(prompt.seq_ids) for prompt in prompts)
        for sequence in sequences:
            assert sequence.num_computed <= sequence.num_planned <= len(sequence.table) * self.pool.block_size
            assert sequence.pending == sum(sequence in flight.sequences for flight in self._flights)
            num_known = len(sequence.tokens) - sequence.num_planned + sequence.num_drafts
            assert num_known == 1 - sequence.pending or sequence.ended
        for prompt in prompts:
            assert prompt.pending == sum(prompt is p for flight in self._flights for p, _ in flight.chunks)
        self.pool.check(
            [
                *(sequence.table for sequence in sequences),
                *([sequence.source] for sequence in sequences if sequence.source is not None),
                *(prompt.paged.table + prompt.spares for prompt in prompts),
                *([source for source, _ in flight.copies] for flight in self._flights),
                *self._placed.quarantine.blocks,
            ]
        )

    # Planning.

    def _plan_prompt(self, prompt: Prompt, budget: int, flight: Flight) -> int:
        """Adds its draws or its next chunk; the number of tokens that took of the budget."""
        if prompt.condemned:
            return 0
        if error := prompt.pending_guide and prompt.pending_guide.failure(self._placed.now):
            self._placed.fail(prompt.placement, error)
            return 0
        if prompt.state is PromptState.RECEIVED and not prompt.waits_for_grammar:
            self._placed.start(prompt, flight.add_shipped(prompt, self.pool))
            return 0
        if prompt.state is not PromptState.PREFILLING:
            return 0
        num_tokens = min(budget, self._max_chunk_tokens, prompt.paged.num_unplanned)
        if num_tokens == prompt.paged.num_unplanned and prompt.waits_for_grammar:
            return 0
        if num_tokens:
            self._placed.start(prompt, flight.add_chunk(prompt, num_tokens, self.pool))
        return num_tokens

    def _many_wait(self) -> bool:
        """Whether many sequences could not be in a step before the one in flight is applied: rather than taking turns
        with the others, which takes both twice as long, all go together then. Who may not be in the step after it
        either, as its grammar takes long, is not waited for."""
        flown = self._flights[-1].sequences
        waiting = sum(one.needs_last_token and not (one.ended or one.takes_long) for one in flown)
        return waiting > 0 and waiting * WAITING_SHARE >= len(self._placed.running)

    def _wait(self, now: float) -> None:
        """For the step in flight. What comes after it takes from now on, or from its end."""
        if self._waits_since is None:
            self._waits_since = now

    def _begin_anew(self, sequence: Sequence) -> None:
        """After a rewind, the sampling state forgets the tokens taken back."""
        self._placed.effects.retire.append(sequence.seq_id)
        self._placed.effects.admit.append(sequence.take_new_seed())

    def _has_block(self, sequence: Sequence) -> bool:
        """Whether the next token has a slot. Makes room for it where there is none; False if that takes until the
        plan in flight is applied, or if it was this sequence that had to go."""
        if not sequence.needs_block(self.pool.block_size):
            return True
        while (blocks := self.pool.allocate(1, after=sequence.table[-1])) is None:
            if not self._make_room():
                return False
            if sequence.ended or sequence.condemned:
                return False
        sequence.table += blocks
        return True

    def _make_room(self) -> bool:
        """Takes blocks from the youngest; False if some come back anyway, once the plan in flight is applied or a
        quarantine is over."""
        if any(flight.frees_blocks for flight in self._flights):
            return False
        if self._placed.quarantine.ends_soon(self._placed.now):
            return False
        untouched = [prompt for prompt in self._placed.prompts.values() if prompt.untouched]
        if untouched:
            self._placed.give_up(untouched[-1], "revoked: running sequences need its blocks", preempted=False)
            return True
        begun: list[Prompt | Sequence] = [*self._placed.prompts.values(), *self._placed.running]
        if len(begun) == 1:
            assert self._placed.quarantine, "a single sequence fits the pool"
            return False  # nobody is left to give way: what is missing comes back with the last quarantine
        victim = max(begun, key=lambda item: item.age)
        victim.condemned = True
        self._placed.land(victim)
        return True

    # Leaving.

    def _report(self, prompt: Prompt, position: int, rows: Collection[TokenLogprobs]) -> None:
        """How likely the tokens of the prompt from `position` on were."""
        if rows and not prompt.ended:
            assert prompt.num_prompt_logprobs is not None
            self._report_packed(prompt, position, pack_logprobs(rows, prompt.num_prompt_logprobs))

    def _report_packed(self, prompt: Prompt, position: int, rows: bytes) -> None:
        if rows and prompt.num_prompt_logprobs is not None:
            message = PromptLogprobs(prompt.placement, position, prompt.num_prompt_logprobs, rows)
            self._placed.effects.messages.append(message)

    def _pool(self, prompt: Prompt, result: Result) -> None:
        """Takes in what a chunk adds to its prompt's vector; with the last one, the vector is told."""
        if prompt.ended or prompt.pooler is None:
            return
        if prompt.row_seq_id in result.pooled:
            prompt.pooler.add(result.pooled[prompt.row_seq_id])
        if prompt.paged.num_computed == prompt.paged.num_tokens:
            self._placed.effects.messages.append(Pooled(prompt.placement, prompt.pooler.packed()))

    def _accept(self, sequence: Sequence, drawn: list[Drawn], *, has_row: bool) -> TokenRow | None:
        """What was drawn for a sequence that has ended in the meantime is discarded."""
        num_drafts, ended = sequence.num_drafts, sequence.ended
        if num_drafts:
            self._guesses.judge(sequence, drawn)
        row = sequence.take(drawn, self.pool, has_row=has_row)
        if row is not None and row.finish_reason:
            self._placed.end(sequence)
        if num_drafts and not ended and not sequence.rewound:  # after a rewind, its next row may need them all
            self._return_blocks(sequence)
        return row

    def _return_blocks(self, sequence: Sequence) -> None:
        """Those that only wrong guesses have used."""
        num_used = -(-sequence.num_planned // self.pool.block_size)
        self.pool.free(sequence.table[num_used:])
        del sequence.table[num_used:]
