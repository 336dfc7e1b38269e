"""The router's memory of every job: what is queued, where the rest runs, and all tokens so far.

No clock, no sockets: each method is told what happened and when. Messages for workers collect in `outbox`; tokens and
errors go to the job's sink at once. A worker's answer to a placement that is no longer open is late, and ignored.
"""

import logging
from itertools import takewhile

from ..wire.codec import pack_ids
from ..wire.logprobs import unpack_logprobs
from ..wire.messages import (
    Cancel,
    Cancelled,
    Declined,
    Failed,
    FromRouter,
    Pooled,
    Prefilled,
    PromptLogprobs,
    Reserved,
    TokenRow,
    Tokens,
    placement_base,
)
from .attempts import Attempts
from .history import History
from .job import Job, JobError, NewTokens
from .metrics import Metrics
from .placement_messages import path_of, prefill_message, reserve_message
from .rates import TransferRates
from .sequence import Attempt, Entry, Sequence, Sink, WorkerId
from .stages import date_prefill, record, timings
from .states import State
from .throughput import Throughput
from .waiting import WaitingQueue, group_of

log = logging.getLogger(__name__)

MAX_FAILURES = 3
MAX_DEATHS = 2
FIRST_PAUSE_S = 0.02
MAX_PAUSE_S = 1.0


class Ledger:
    """Every job from its submission until its last choice has ended and the last worker has let go of it."""

    def __init__(self, *, router_epoch: int, metrics: Metrics, request_timeout_s: float | None = None):
        self.waiting = WaitingQueue()
        self.outbox: list[tuple[WorkerId, FromRouter]] = []
        self.metrics = metrics
        self.throughput = Throughput()
        self.rates = TransferRates()
        self.history = History()
        self._request_timeout_s = request_timeout_s
        self._next_placement = placement_base(router_epoch)
        self._next_arrival = 0
        self._entries: dict[int, Entry] = {}
        self._unanswered: dict[int, float] = {}
        """Deadlines of the jobs without a first token, by arrival."""
        self._attempts = Attempts()

    # What may be asked.

    @property
    def num_running(self) -> int:
        """Sequences that are at some worker."""
        return self._attempts.num_sequences

    @property
    def is_empty(self) -> bool:
        return self._attempts.is_empty and not (self._entries or self._unanswered or len(self.waiting))

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def attempts_of(self, worker: WorkerId) -> list[Attempt]:
        """Placements this worker takes part in, or still has to answer a cancel of."""
        return self._attempts.of(worker)

    # What clients do.

    def submit(self, job: Job, sink: Sink, now: float) -> Entry:
        """Queues every choice of the job."""
        entry = Entry(job, sink, self._next_arrival, now, pack_ids(job.prompt_ids), job.num_choices)
        self._next_arrival += 1
        self._entries[entry.arrival] = entry
        if self._request_timeout_s is not None:
            self._unanswered[entry.arrival] = now + self._request_timeout_s
        for choice in range(job.num_choices):
            sequence = Sequence(entry, choice, token_at=now)
            entry.sequences.append(sequence)
            self.waiting.add(sequence)
        return entry

    def stop(self, entry: Entry, choice: int, now: float) -> None:
        """The client has all it wants of this choice, as if the model had stopped there."""
        sequence = entry.sequences[choice] if entry.num_open else None
        if sequence is not None and sequence.is_open:
            self._end(sequence, State.CANCELLED, "stop", now)

    def cancel(self, entry: Entry, now: float) -> None:
        """The client is gone."""
        for sequence in [*entry.sequences]:
            if sequence.is_open:
                self._end(sequence, State.CANCELLED, "abort", now)

    def fail(self, entry: Entry, error: JobError, now: float) -> None:
        """Ends the whole job with an error."""
        if not entry.num_open:
            return
        log.info("request %s: %d: %s", entry.job.request_id, error.status, error.message, extra=about(entry))
        for sequence in [*entry.sequences]:
            if sequence.is_open:
                self._end(sequence, State.FAILED, "error", now)
        entry.sink.fail(error)

    def expire(self, now: float) -> None:
        """Fails the jobs whose first token is overdue."""
        overdue = takewhile(lambda item: item[1] <= now, self._unanswered.items())
        for arrival, _ in list(overdue):
            error = JobError(504, f"no token within {self._request_timeout_s:g} s")
            self.fail(self._entries[arrival], error, now)

    # What dispatch decides.

    def place(
        self,
        head: Sequence,
        *,
        decode: WorkerId | None,
        prefill: WorkerId | None,
        data_endpoint: str,
        cost_blocks: int,
        max_choices: int,
        now: float,
    ) -> Attempt:
        """Sends a queued sequence, and the others of its group, to these workers: to one of them alone if the job
        wants no token."""
        entry, job = head.entry, head.entry.job
        assert (decode is None or prefill is None) if job.prompt_only else decode is not None
        attempt = Attempt(
            self._next_placement, entry, decode, prefill, data_endpoint, entry.prompt + head.as_choice().output, now
        )
        self._next_placement += 1
        self.metrics.num_placements[path_of(attempt)] += 1
        for sequence in group_of(head, max_choices):
            self.waiting.remove(sequence)
            sequence.move(State.PREFILLING if decode is None else State.RESERVED)
            sequence.attempt = attempt
            sequence.passed_since = sequence.held = None
            attempt.sequences[sequence.choice] = sequence
        self._attempts.open(attempt)
        if decode is None:
            self._send_prefill(attempt, "")
        else:
            self.outbox.append((decode, reserve_message(attempt, cost_blocks)))
        return attempt

    # What workers say.

    def on_reserved(self, worker: WorkerId, message: Reserved) -> None:
        attempt = self._attempts.find(message.placement, worker)
        if attempt is None or not attempt.sequences:
            return
        if worker != attempt.decode or attempt.prefill_sent:
            log.warning("request %s: stray Reserved", attempt.entry.job.request_id, extra=about(attempt.entry))
            return
        attempt.num_cached_tokens = message.num_cached_tokens
        for sequence in attempt.sequences.values():
            if sequence.state is State.RESERVED:
                sequence.move(State.PREFILLING)
        if attempt.prefill is not None:
            self._send_prefill(attempt, message.transfer_id)

    def on_prefilled(self, worker: WorkerId, message: Prefilled, now: float) -> None:
        """The first token may have come before, by another way; then only the time is of interest."""
        attempt = self._attempts.find(message.placement, worker)
        if attempt is None or worker != attempt.prefill or not attempt.prefill_sent or attempt.prefilled_at is not None:
            return
        attempt.prefilled_at = max(attempt.placed_at, now - message.transfer_s)
        was_busy, attempt.prefill_ended = attempt.prefill_busy, True
        if attempt.decode is None:
            attempt.num_cached_tokens = message.num_cached_tokens
            for sequence in list(attempt.sequences.values()):
                self._complete(sequence, now)
            return
        self._learn(attempt, attempt.decode, message)
        date_prefill(attempt)
        for sequence in attempt.sequences.values() if was_busy else ():
            if sequence.state is State.PREFILLING:
                sequence.move(State.RECEIVING)

    def on_prompt_logprobs(self, worker: WorkerId, message: PromptLogprobs) -> None:
        """Of several choices that were placed apart, the first to be computed tells."""
        attempt = self._attempts.find(message.placement, worker)
        if attempt is not None:
            attempt.entry.learn_prompt(message.position, unpack_logprobs(message.rows, message.num_top))

    def on_pooled(self, worker: WorkerId, message: Pooled) -> None:
        attempt = self._attempts.find(message.placement, worker)
        if attempt is not None:
            attempt.entry.learn_vector(message.values)

    def on_tokens(self, worker: WorkerId, message: Tokens, now: float) -> None:
        """Applies each row at exactly the ledger's position; any other position fails that sequence."""
        for row in message.rows:
            attempt = self._attempts.by_placement.get(row.placement)
            sequence = attempt.sequences.get(row.choice) if attempt and attempt.decode == worker else None
            if sequence is None:
                log.debug("late tokens for placement %d choice %d", row.placement, row.choice)
            elif row.position != len(sequence.output) or sequence.state is State.RESERVED:
                self._misplaced(sequence, row, now)
            elif sequence.entry.num_prompt_logprobs is not None:
                self._fail_attempt(sequence, "tokens before the logprobs of their prompt", now)
            elif sequence.entry.job.prompt_only:
                self._complete(sequence, now)
            else:
                self._extend(sequence, row, now)

    def on_declined(self, worker: WorkerId, message: Declined, now: float) -> None:
        """Back to the queue, to its front what had begun."""
        attempt = self._attempts.find(message.placement, worker)
        if attempt is None or worker != attempt.decode:
            return
        left = self._named(attempt, message.choice)
        log.debug("request %s: declined: %s", attempt.entry.job.request_id, message.reason, extra=about(attempt.entry))
        for sequence in left:
            if message.preempted:
                sequence.urgent = True
                self.metrics.num_preemptions += 1
            else:
                self._pause(sequence, now)
            self._requeue(sequence)
        self._settle(attempt, left, decode_knows=True)

    def on_failed(self, worker: WorkerId, message: Failed, now: float) -> None:
        """Retriable: back to the queue, three times at most. Otherwise the job cannot be served (400)."""
        attempt = self._attempts.find(message.placement, worker)
        if attempt is None or not attempt.sequences or (worker == attempt.prefill and not attempt.prefill_busy):
            return
        entry, left = attempt.entry, list(attempt.sequences.values())
        log.warning("request %s: failed: %s", entry.job.request_id, message.error, extra=about(entry))
        if worker == attempt.prefill:
            attempt.prefill_ended = True
        for sequence in left:
            self._requeue(sequence)
        self._settle(attempt, left, decode_knows=worker == attempt.decode)
        if not message.retriable:
            self.fail(entry, JobError(400, message.error), now)
        for sequence in left:
            self._count_failure(sequence, message.error, now)

    def on_cancelled(self, worker: WorkerId, message: Cancelled) -> None:
        attempt = self._attempts.find(message.placement, worker)
        if attempt is not None:
            attempt.awaited.discard((worker, message.choice))
            self._attempts.close_if_done(attempt)

    def worker_lost(self, worker: WorkerId, now: float, *, died: bool) -> None:
        """Requeues all that ran there. What may have been in the plan of two workers that died is failed instead."""
        for attempt in self._attempts.of(worker):
            attempt.awaited = {(who, choice) for who, choice in attempt.awaited if who != worker}
            left = self._lost_with(attempt, worker)
            for sequence in left:
                sequence.num_deaths += died and may_compute(sequence, attempt, worker)
                sequence.urgent = True
                self._requeue(sequence)
            if worker == attempt.prefill:
                attempt.prefill_ended = True
            self._settle(attempt, left, decode_knows=worker == attempt.decode)
            self._attempts.close_if_done(attempt)
            if any(s.num_deaths >= MAX_DEATHS for s in left):
                error = JobError(500, f"{MAX_DEATHS} workers died while running this request")
                self.fail(attempt.entry, error, now)
        self._attempts.forget(worker)
        self.rates.forget(worker)

    def prefill_withdrawn(self, worker: WorkerId) -> None:
        """A prefill worker takes no new work: requeues what it was chosen for but has not been sent."""
        for attempt in self._attempts.of(worker):
            if attempt.prefill == worker and attempt.prefill_waits:
                left = list(attempt.sequences.values())
                for sequence in left:
                    self._requeue(sequence)
                self._settle(attempt, left, decode_knows=False)

    # Tokens.

    def _extend(self, sequence: Sequence, row: TokenRow, now: float) -> None:
        entry = sequence.entry
        if sequence.state is not State.RUNNING:
            self._begin(sequence, now)
        sequence.output.extend(row.token_ids)
        sequence.sampler_state, sequence.epoch = row.state, row.epoch
        self.metrics.count_tokens(len(row.token_ids), now - sequence.token_at, first=row.position == 0)
        sequence.token_at = entry.last_token_at = now
        entry.sink.push(NewTokens(row.choice, row.token_ids, row.finish_reason, row.stop_token_id, row.logprobs))
        if row.finish_reason is not None:
            self._end(sequence, State.DONE, row.finish_reason, now)

    def _begin(self, sequence: Sequence, now: float) -> None:
        """The first tokens of an attempt: whatever a prefill worker was to do for it, it has done."""
        attempt, entry = sequence.attempt, sequence.entry
        assert attempt is not None
        sequence.move(State.RUNNING)
        sequence.num_declines = 0
        attempt.prefill_ended = True
        if entry.answered_by is None:
            self._answered(attempt, now)
            self.metrics.ttft_s.observe(now - entry.submitted_at)

    def _complete(self, sequence: Sequence, now: float) -> None:
        """The prompt of a job that wants no token is computed."""
        attempt, entry = sequence.attempt, sequence.entry
        assert attempt is not None
        if entry.awaits_vector:
            self._fail_attempt(sequence, "the end of a prompt before its vector", now)
            return
        if entry.answered_by is None:
            self._answered(attempt, now)
        entry.sink.push(NewTokens(sequence.choice, (), "length"))
        self._end(sequence, State.DONE, "length", now)

    def _answered(self, attempt: Attempt, now: float) -> None:
        """Writes down what gave the job's first token, and when."""
        entry = attempt.entry
        self._unanswered.pop(entry.arrival, None)
        entry.answered_by, entry.placed_at, entry.first_token_at = attempt.placement, attempt.placed_at, now
        entry.num_cached_tokens = attempt.num_cached_tokens
        entry.prefill, entry.decode = attempt.prefill, attempt.decode
        date_prefill(attempt)
        self.metrics.count_prompt(entry.num_prompt_tokens)

    def _learn(self, attempt: Attempt, decode: WorkerId, message: Prefilled) -> None:
        assert attempt.prefill is not None
        self.metrics.transfer_bytes.observe(message.transfer_bytes)
        self.rates.record(
            attempt.prefill,
            decode,
            num_tokens=attempt.num_tokens - attempt.num_cached_tokens,
            num_bytes=message.transfer_bytes,
            transfer_s=message.transfer_s,
        )

    def _misplaced(self, sequence: Sequence, row: TokenRow, now: float) -> None:
        error = f"tokens at position {row.position}, expected {len(sequence.output)} ({sequence.state.value})"
        self._fail_attempt(sequence, error, now)

    def _fail_attempt(self, sequence: Sequence, error: str, now: float) -> None:
        """A worker said of the sequence what cannot be: back to the queue, three times at most."""
        attempt = sequence.attempt
        assert attempt is not None
        log.error(
            "request %s choice %d: %s",
            sequence.entry.job.request_id,
            sequence.choice,
            error,
            extra=about(sequence.entry),
        )
        self._requeue(sequence)
        self._settle(attempt, [sequence], decode_knows=False)
        self._count_failure(sequence, error, now)

    # Ends and returns.

    def _end(self, sequence: Sequence, state: State, finish_reason: str, now: float) -> None:
        entry = sequence.entry
        if sequence.state is State.QUEUED:
            self.waiting.remove(sequence)
        attempt = self._leave(sequence, state)
        if attempt is not None:
            self._settle(attempt, [sequence], decode_knows=state is State.DONE)
        decode_s = 0.0 if entry.first_token_at is None else sequence.token_at - entry.first_token_at
        self.metrics.count_finished(finish_reason, len(sequence.output), decode_s)
        self.throughput.count(1, now)
        entry.num_open -= 1
        if not entry.num_open:
            at_stop_string = finish_reason == "stop" and state is State.CANCELLED
            self.history.add(record(entry, timings(entry, now), now, finish_reason, at_stop_string))
            self._close(entry, now)
            if state is not State.FAILED:
                entry.sink.end()

    def _close(self, entry: Entry, now: float) -> None:
        del self._entries[entry.arrival]
        self._unanswered.pop(entry.arrival, None)
        self.metrics.e2e_s.observe(now - entry.submitted_at)
        if entry.answered_by is not None:
            self.metrics.observe_stages(timings(entry, now), transferred=entry.prefilled_at is not None)
        self.metrics.longest_generation_tokens.observe(max(len(s.output) for s in entry.sequences))
        entry.sequences.clear()

    def _requeue(self, sequence: Sequence) -> None:
        self._leave(sequence, State.QUEUED)
        self.waiting.add(sequence)

    def _leave(self, sequence: Sequence, state: State) -> Attempt | None:
        sequence.move(state)
        attempt, sequence.attempt = sequence.attempt, None
        if attempt is not None:
            del attempt.sequences[sequence.choice]
        return attempt

    def _count_failure(self, sequence: Sequence, error: str, now: float) -> None:
        sequence.num_failures += 1
        if sequence.num_failures >= MAX_FAILURES and sequence.is_open:
            self.fail(sequence.entry, JobError(500, f"failed {MAX_FAILURES} times, at last: {error}"), now)

    def _pause(self, sequence: Sequence, now: float) -> None:
        """A decline after a decline: its worker's credit promises room it has not."""
        if sequence.num_declines:
            sequence.retry_at = now + min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0**sequence.num_declines)
        sequence.num_declines = min(sequence.num_declines + 1, 16)

    # Attempts.

    def _named(self, attempt: Attempt, choice: int | None) -> list[Sequence]:
        if choice is None:
            return list(attempt.sequences.values())
        sequence = attempt.sequences.get(choice)
        return [] if sequence is None else [sequence]

    def _lost_with(self, attempt: Attempt, worker: WorkerId) -> list[Sequence]:
        """Sequences of the attempt that cannot go on without the worker: on decode all, on prefill those whose KV may
        not have arrived."""
        sequences = attempt.sequences.values()
        return [s for s in sequences if worker == attempt.decode or s.state is not State.RUNNING]

    def _send_prefill(self, attempt: Attempt, transfer_id: str) -> None:
        assert attempt.prefill is not None
        attempt.prefill_sent = True
        self.outbox.append((attempt.prefill, prefill_message(attempt, transfer_id)))

    def _settle(self, attempt: Attempt, left: list[Sequence], *, decode_knows: bool) -> None:
        """After these sequences have left: tells the workers that still hold something of them."""
        if not left:
            return
        decode = None if decode_knows else attempt.decode
        if attempt.sequences:
            for sequence in left if decode is not None else ():
                assert decode is not None
                self._cancel(attempt, decode, sequence.choice)
            return
        if decode is not None:
            self._cancel(attempt, decode, None)
        if attempt.prefill_busy:
            assert attempt.prefill is not None
            attempt.prefill_ended = True
            self._cancel(attempt, attempt.prefill, None)
        self._attempts.close_if_done(attempt)

    def _cancel(self, attempt: Attempt, worker: WorkerId, choice: int | None) -> None:
        attempt.awaited.add((worker, choice))
        self.outbox.append((worker, Cancel(attempt.placement, choice)))


def may_compute(sequence: Sequence, attempt: Attempt, worker: WorkerId) -> bool:
    """Whether the sequence, which is about to leave, may have been in the plan this worker was running."""
    if sequence.state is State.PREFILLING:
        return worker == (attempt.prefill or attempt.decode)
    return worker == attempt.decode and sequence.state in (State.RECEIVING, State.RUNNING)


def about(entry: Entry) -> dict[str, str]:
    """For a log line, as `extra`."""
    return {"request_id": entry.job.request_id}
