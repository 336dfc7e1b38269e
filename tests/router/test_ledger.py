"""The ledger by itself: single rules, and a long random walk with workers that are late, wrong and mortal."""

import dataclasses
import random
from collections import Counter
from functools import cache
from zlib import crc32

import pytest
from isthmus.router.job import Job, JobError, JobTimings, JobWorkers
from isthmus.router.ledger import MAX_DEATHS, Ledger
from isthmus.router.metrics import Metrics
from isthmus.router.sequence import Sequence
from isthmus.router.stages import timings
from isthmus.router.states import FINAL, LEGAL_MOVES, State
from isthmus.router.stream import JobStream
from isthmus.wire.codec import unpack_ids
from isthmus.wire.logprobs import TokenLogprobs, pack_logprobs
from isthmus.wire.messages import (
    Cancel,
    Cancelled,
    Declined,
    Failed,
    Pooled,
    Prefill,
    Prefilled,
    PromptLogprobs,
    Reserve,
    Reserved,
    TokenRow,
    Tokens,
    placement_base,
)
from isthmus.wire.sampling import SamplingParams

D, P = b"d0", b"p0"


class Sink:
    def __init__(self):
        self.prompt_logprobs = ()
        self.pooled = b""
        self.tokens = {}
        self.reasons = {}
        self.ended = False
        self.error = None

    def push(self, new):
        assert not self.ended
        assert self.error is None
        assert new.choice not in self.reasons
        self.tokens.setdefault(new.choice, []).extend(new.token_ids)
        if new.finish_reason is not None:
            self.reasons[new.choice] = new.finish_reason

    def end(self):
        assert not self.ended
        assert self.error is None
        self.ended = True

    def fail(self, error):
        assert not self.ended
        assert self.error is None
        self.error = error


def make_ledger(**given):
    return Ledger(router_epoch=5, metrics=Metrics(), **given)


def make_job(name="r1", num_choices=1, max_tokens=None, **given):
    return Job(name, 0, [1, 2, 3, 4], num_choices, SamplingParams(seed=7, max_tokens=max_tokens), (2,), **given)


def place(ledger, head, *, decode=D, prefill=None, max_choices=8, now=0.0):
    return ledger.place(
        head,
        decode=decode,
        prefill=prefill,
        data_endpoint="tcp://data",
        cost_blocks=1,
        max_choices=max_choices,
        now=now,
    )


def first(ledger, now=0.0):
    return next(ledger.waiting.heads(now))


def running(ledger, *, prefill=None, decode=D, output=(7,)):
    """A job in RUNNING with these tokens."""
    sink = Sink()
    entry = ledger.submit(make_job(), sink, 0.0)
    attempt = place(ledger, first(ledger), decode=decode, prefill=prefill)
    begin(ledger, attempt, 0, output)
    return entry, attempt, sink


def begin(ledger, attempt, position, output):
    ledger.on_reserved(attempt.decode, Reserved(attempt.placement, 0, "t"))
    ledger.on_tokens(attempt.decode, tokens(attempt, position, *output), 1.0)


def tokens(attempt, position, *ids, choice=0, finish=None):
    return Tokens((TokenRow(attempt.placement, choice, position, ids, finish),))


def test_placement_ids_count_up_from_the_epochs_base():
    ledger = make_ledger()
    ids = []
    for i in range(3):
        ledger.submit(make_job(f"r{i}"), Sink(), 0.0)
        ids.append(place(ledger, first(ledger)).placement)
    assert ids == [placement_base(5) + i for i in range(3)]


def test_the_reserve_carries_the_job():
    ledger = make_ledger()
    ledger.submit(make_job(num_choices=3), Sink(), 0.0)
    place(ledger, first(ledger), prefill=P, max_choices=2)
    ((worker, reserve),) = ledger.outbox
    assert worker == D
    assert isinstance(reserve, Reserve)
    assert unpack_ids(reserve.prompt) == [1, 2, 3, 4]
    assert [c.index for c in reserve.choices] == [0, 1], "the third waits for another placement"
    assert (reserve.remote, reserve.eos_ids, reserve.params.seed) == (True, (2,), 7)
    assert first(ledger).choice == 2


def test_the_salt_reaches_both_workers():
    ledger = make_ledger()
    ledger.submit(make_job(salt=b"s"), Sink(), 0.0)
    attempt = place(ledger, first(ledger), prefill=P)
    ledger.on_reserved(D, Reserved(attempt.placement, 0, "t"))
    assert [(worker, message.salt) for worker, message in ledger.outbox] == [(D, b"s"), (P, b"s")]


def test_a_replay_carries_the_state_after_the_last_token():
    ledger = make_ledger()
    ledger.submit(make_job(), Sink(), 0.0)
    attempt = place(ledger, first(ledger))
    ledger.on_reserved(D, Reserved(attempt.placement, 0, ""))
    for position, state in enumerate((b"one", b"two")):
        ledger.on_tokens(D, Tokens((TokenRow(attempt.placement, 0, position, (9,), state=state),)), 1.0)
    ledger.on_tokens(D, Tokens((TokenRow(attempt.placement, 0, 5, (9,), state=b"of another position"),)), 1.0)
    place(ledger, first(ledger), decode=b"d1", now=9.0)
    (choice,) = ledger.outbox[-1][1].choices
    assert (unpack_ids(choice.output), choice.state) == ([9, 9], b"two")


PROMPT_ROWS = [TokenLogprobs(-float(i), ((i, -0.5),), i) for i in (1, 2, 3)]


def prompt_rows(attempt, position, rows):
    return PromptLogprobs(attempt.placement, position, 1, pack_logprobs(rows, 1))


def asking(num_choices=1, max_tokens=None):
    """(ledger, entry, sink) of a job that asks about its four tokens."""
    ledger, sink = make_ledger(), Sink()
    params = SamplingParams(seed=7, max_tokens=max_tokens, prompt_logprobs=1)
    return ledger, ledger.submit(Job("r1", 0, [1, 2, 3, 4], num_choices, params, (2,)), sink, 0.0), sink


def test_a_prompts_logprobs_are_there_when_its_first_token_is():
    ledger, _, sink = asking()
    attempt = place(ledger, first(ledger))
    ledger.on_reserved(D, Reserved(attempt.placement, 0, ""))
    ledger.on_prompt_logprobs(D, prompt_rows(attempt, 1, PROMPT_ROWS[:2]))
    assert sink.prompt_logprobs == ()
    ledger.on_prompt_logprobs(D, prompt_rows(attempt, 3, PROMPT_ROWS[2:]))
    assert sink.prompt_logprobs == PROMPT_ROWS
    ledger.on_tokens(D, tokens(attempt, 0, 7, finish="stop"), 1.0)
    assert sink.tokens == {0: [7]}
    assert ledger.is_empty


def test_what_a_lost_worker_told_of_a_prompt_is_not_told_twice():
    ledger, _, sink = asking()
    attempt = place(ledger, first(ledger))
    ledger.on_prompt_logprobs(D, prompt_rows(attempt, 1, PROMPT_ROWS[:2]))
    ledger.worker_lost(D, 1.0, died=True)
    attempt = place(ledger, first(ledger), decode=b"d1", prefill=P)
    assert ledger.outbox[-1][1].params.prompt_logprobs == 1
    ledger.on_reserved(b"d1", Reserved(attempt.placement, 0, "t"))
    assert (ledger.outbox[-1][1].prompt_logprobs, ledger.outbox[-1][1].prompt_len) == (1, 4)
    ledger.on_prompt_logprobs(b"d1", prompt_rows(attempt, 1, PROMPT_ROWS))
    assert sink.prompt_logprobs == PROMPT_ROWS
    ledger.on_tokens(b"d1", tokens(attempt, 0, 7), 1.0)
    ledger.worker_lost(b"d1", 2.0, died=False)
    attempt = place(ledger, first(ledger), prefill=P, now=3.0)
    assert ledger.outbox[-1][1].params.prompt_logprobs is None
    ledger.on_reserved(D, Reserved(attempt.placement, 0, "t"))
    assert ledger.outbox[-1][1].prompt_logprobs is None


def test_choices_that_are_placed_apart_tell_once():
    ledger, _, sink = asking(num_choices=2)
    attempts = [place(ledger, first(ledger), max_choices=1, decode=decode) for decode in (D, b"d1")]
    for attempt in attempts:
        ledger.on_reserved(attempt.decode, Reserved(attempt.placement, 0, ""))
        ledger.on_prompt_logprobs(attempt.decode, prompt_rows(attempt, 1, PROMPT_ROWS))
        ledger.on_tokens(attempt.decode, tokens(attempt, 0, 7, choice=attempts.index(attempt), finish="stop"), 1.0)
    assert sink.prompt_logprobs == PROMPT_ROWS
    assert ledger.is_empty


def test_tokens_before_their_prompts_logprobs_are_a_failure():
    ledger, entry, sink = asking()
    for _ in range(3):
        attempt = place(ledger, first(ledger))
        ledger.on_reserved(D, Reserved(attempt.placement, 0, ""))
        ledger.on_tokens(D, tokens(attempt, 0, 7), 1.0)
        ledger.on_cancelled(D, Cancelled(attempt.placement))
    assert sink.error.status == 500
    assert not sink.tokens
    assert not entry.num_open


def test_timings_are_of_the_first_placement_that_gave_a_token():
    ledger = make_ledger()
    entry = ledger.submit(make_job(), Sink(), 1.0)
    attempt = place(ledger, first(ledger), now=2.0)
    ledger.on_declined(D, Declined(attempt.placement, "no room"), 2.5)
    assert timings(entry, 3.0).queue_s == 2.0
    attempt = place(ledger, first(ledger), now=3.0)
    ledger.on_reserved(D, Reserved(attempt.placement, 2, ""))
    ledger.on_tokens(D, tokens(attempt, 0, 7), 3.5)
    ledger.on_tokens(D, tokens(attempt, 1, 8, finish="stop"), 5.0)
    assert timings(entry, 99.0) == JobTimings(2.0, 0.5, 0.0, 1.5, 2)
    assert ledger.is_empty


def remote(**given):
    """(ledger, entry, attempt) of a job placed at 2 with a prefill worker."""
    ledger = make_ledger(**given)
    entry = ledger.submit(make_job(), Sink(), 1.0)
    attempt = place(ledger, first(ledger), prefill=P, now=2.0)
    ledger.on_reserved(D, Reserved(attempt.placement, 2, "t"))
    return ledger, entry, attempt


def prefilled(attempt, transfer_s=0.25):
    return Prefilled(attempt.placement, 0, 0.1, 1000, transfer_s)


def test_transfer_counts_from_the_end_of_the_computation_to_the_first_token():
    ledger, entry, attempt = remote()
    ledger.on_prefilled(P, prefilled(attempt), 4.0)
    assert timings(entry, 4.5) == JobTimings(3.5, 0.0, 0.0, 0.0, 0), "no token yet: it may still be placed anew"
    ledger.on_tokens(D, tokens(attempt, 0, 7), 4.5)
    ledger.on_tokens(D, tokens(attempt, 1, 8, finish="stop"), 6.5)
    assert timings(entry, 99.0) == JobTimings(1.0, 1.75, 0.75, 2.0, 2)
    assert (ledger.metrics.transfer_s.count, ledger.metrics.transfer_s.sum) == (1, 0.75)
    assert (ledger.metrics.prefill_s.sum, ledger.metrics.queue_s.sum, ledger.metrics.ttft_s.sum) == (1.75, 1.0, 3.5)


@pytest.mark.parametrize(("heard_at", "expected"), [(4.0, (1.75, 0.25)), (4.5, (2.0, 0.0))])
def test_prefilled_may_be_heard_of_after_the_first_token(heard_at, expected):
    ledger, entry, attempt = remote()
    ledger.on_tokens(D, tokens(attempt, 0, 7), 4.0)
    assert timings(entry, 4.0) == JobTimings(1.0, 2.0, 0.0, 0.0, 2)
    ledger.on_prefilled(P, prefilled(attempt), heard_at)
    found = timings(entry, 5.0)
    assert (found.prefill_s, found.transfer_s) == expected
    assert entry.sequences[0].state is State.RUNNING


def test_the_prefilled_of_an_attempt_that_gave_no_token_dates_nothing():
    ledger, entry, attempt = remote()
    ledger.on_prefilled(P, prefilled(attempt), 4.0)
    ledger.worker_lost(D, 4.5, died=True)
    again = place(ledger, first(ledger), decode=b"d1", now=5.0)
    begin(ledger, again, 0, (7,))
    assert (timings(entry, 9.0).queue_s, timings(entry, 9.0).transfer_s) == (4.0, 0.0)


def test_transfers_teach_the_bandwidth_of_their_pair():
    ledger, _, attempt = remote()
    ledger.on_prefilled(P, prefilled(attempt), 4.0)
    ledger.on_prefilled(P, prefilled(attempt), 4.0)
    assert ledger.rates.from_prefill(P) == {D: 4000.0}
    assert ledger.rates.bytes_per_token == 500.0, "two of the four tokens were there already"
    ledger.worker_lost(D, 5.0, died=True)
    assert ledger.rates.from_prefill(P) == {}


def test_an_ended_stream_knows_who_ran_it():
    ledger = make_ledger()
    stream = JobStream(stop=ledger.stop, cancel=ledger.cancel, clock=lambda: 9.0)
    stream.entry = ledger.submit(make_job(), stream, 1.0)
    assert stream.workers() == JobWorkers(None, None)
    attempt = place(ledger, first(ledger), prefill=b"p0#1", decode=b"d0#1", now=2.0)
    assert stream.workers() == JobWorkers(None, None), "it may still be placed anew"
    ledger.on_reserved(b"d0#1", Reserved(attempt.placement, 2, "t"))
    ledger.on_tokens(b"d0#1", tokens(attempt, 0, 7), 4.5)
    assert stream.workers() == JobWorkers("p0", "d0")
    ledger.on_tokens(b"d0#1", tokens(attempt, 1, 8, finish="stop"), 6.5)
    assert stream.entry is None
    assert stream.workers() == JobWorkers("p0", "d0")


def test_placements_transfers_and_the_longest_answer_are_counted():
    ledger, _, attempt = remote()
    ledger.on_prefilled(P, prefilled(attempt), 4.0)
    ledger.on_tokens(D, tokens(attempt, 0, 7, 8), 4.5)
    ledger.on_tokens(D, tokens(attempt, 2, 9, finish="stop"), 6.5)
    ledger.submit(make_job(), Sink(), 7.0)
    place(ledger, first(ledger), now=7.0)
    metrics = ledger.metrics
    assert metrics.num_placements == {"prefill-decode": 1, "decode": 1, "prefill": 0}
    assert (metrics.transfer_bytes.count, metrics.transfer_bytes.sum) == (1, 1000)
    assert metrics.longest_generation_tokens.sum == 3
    assert metrics.time_per_output_token_s.sum == 1.0, "two tokens in the two seconds after the first"
    assert metrics.inference_s.sum == 4.5


def warm(prefill, decode, num_choices=1):
    """(ledger, entry, attempt, sink) of a job that wants no token, placed at 2 on one of them."""
    ledger, sink = make_ledger(request_timeout_s=10.0), Sink()
    entry = ledger.submit(make_job(num_choices=num_choices, max_tokens=0), sink, 1.0)
    return ledger, entry, place(ledger, first(ledger), prefill=prefill, decode=decode, now=2.0), sink


def test_a_prompt_alone_needs_no_reservation_and_sends_nothing():
    ledger, entry, attempt, sink = warm(P, None, num_choices=2)
    ((worker, message),) = ledger.outbox
    assert (worker, message.first_token, message.transfer_id) == (P, 0, "")
    assert unpack_ids(message.token_ids) == [1, 2, 3, 4]
    assert {s.state for s in entry.sequences} == {State.PREFILLING}
    ledger.on_prefilled(P, Prefilled(attempt.placement, 3, 0.1, 0), 4.0)
    assert (sink.ended, sink.tokens, sink.reasons) == (True, {0: [], 1: []}, {0: "length", 1: "length"})
    assert ledger.is_empty
    assert timings(entry, 99.0) == JobTimings(1.0, 2.0, 0.0, 0.0, 3)
    metrics = ledger.metrics
    assert (metrics.num_prompt_tokens, metrics.ttft_s.count, metrics.transfer_s.count) == (4, 0, 0)
    assert ledger.rates.bytes_per_token == 0


def test_on_a_decode_worker_alone_it_ends_with_an_empty_row():
    ledger, entry, attempt, sink = warm(None, D)
    ledger.on_reserved(D, Reserved(attempt.placement, 3, ""))
    ledger.on_tokens(D, tokens(attempt, 0, finish="length"), 4.0)
    assert (sink.ended, sink.tokens, sink.reasons) == (True, {0: []}, {0: "length"})
    assert timings(entry, 99.0) == JobTimings(1.0, 2.0, 0.0, 0.0, 3)
    assert ledger.is_empty


def test_a_prompt_alone_is_cancelled_at_its_prefill_worker_when_its_last_choice_leaves():
    ledger, entry, attempt, sink = warm(P, None, num_choices=2)
    ledger.outbox.clear()
    ledger.stop(entry, 0, 3.0)
    assert ledger.outbox == []
    ledger.cancel(entry, 3.0)
    assert ledger.outbox == [(P, Cancel(attempt.placement))]
    ledger.on_prefilled(P, Prefilled(attempt.placement, 0, 0.1, 0), 4.0)
    ledger.on_cancelled(P, Cancelled(attempt.placement))
    assert sink.ended
    assert ledger.is_empty


def test_a_prompt_alone_is_tried_elsewhere_when_its_worker_fails_or_dies():
    ledger, entry, attempt, sink = warm(P, None)
    ledger.on_failed(P, Failed(attempt.placement, "draining", retriable=True), 3.0)
    place(ledger, first(ledger), prefill=P, decode=None)
    ledger.worker_lost(P, 4.0, died=True)
    assert (entry.sequences[0].state, entry.sequences[0].num_deaths) == (State.QUEUED, 1)
    last = place(ledger, first(ledger), prefill=b"p1", decode=None)
    ledger.on_prefilled(b"p1", Prefilled(last.placement, 0, 0.1, 0), 5.0)
    assert sink.ended
    assert ledger.is_empty


def test_its_deadline_is_that_of_a_first_token():
    ledger, _, _, sink = warm(P, None)
    ledger.expire(11.0)
    assert sink.error.status == 504


def test_only_what_wants_no_token_goes_without_decode():
    ledger = make_ledger()
    ledger.submit(make_job(), Sink(), 0.0)
    with pytest.raises(AssertionError):
        place(ledger, first(ledger), prefill=P, decode=None)


def pooling(prefill, decode, kind="mean"):
    """As `warm`, of a job that wants a vector."""
    ledger, sink = make_ledger(), Sink()
    entry = ledger.submit(dataclasses.replace(make_job(max_tokens=0), pooling=kind), sink, 1.0)
    return ledger, entry, place(ledger, first(ledger), prefill=prefill, decode=decode, now=2.0), sink


@pytest.mark.parametrize(("prefill", "decode"), [(P, None), (None, D)], ids=["prefill", "decode"])
def test_a_vector_is_asked_for_and_there_before_the_end(prefill, decode):
    ledger, _, attempt, sink = pooling(prefill, decode)
    ((worker, message),) = ledger.outbox
    assert (worker, message.pooling) == (prefill or decode, "mean")
    if decode:
        ledger.on_reserved(D, Reserved(attempt.placement, 0, ""))
    ledger.on_pooled(worker, Pooled(attempt.placement, b"one"))
    assert (sink.pooled, sink.ended) == (b"one", False)
    end_prompt(ledger, attempt)
    assert (sink.ended, sink.reasons) == (True, {0: "length"})
    assert ledger.is_empty


def end_prompt(ledger, attempt, now=4.0):
    """Its worker says that the prompt is computed."""
    if attempt.decode is None:
        ledger.on_prefilled(attempt.prefill, Prefilled(attempt.placement, 0, 0.1, 0), now)
    else:
        ledger.on_tokens(attempt.decode, tokens(attempt, 0, finish="length"), now)


@pytest.mark.parametrize("prefill", [True, False], ids=["prefill", "decode"])
def test_a_prompt_that_ends_without_its_vector_is_tried_again(prefill):
    places = {"prefill": P, "decode": None} if prefill else {"prefill": None, "decode": D}
    ledger, entry, attempt, sink = pooling(**places)
    for _ in range(3):
        assert not sink.ended
        if not prefill:
            ledger.on_reserved(D, Reserved(attempt.placement, 0, ""))
        end_prompt(ledger, attempt)
        if entry.num_open:
            attempt = place(ledger, first(ledger), **places)
    assert sink.error.status == 500
    assert "before its vector" in sink.error.message


def test_a_vector_of_a_worker_that_died_is_not_delivered_twice():
    ledger, entry, attempt, sink = pooling(P, None)
    ledger.on_pooled(P, Pooled(attempt.placement, b"first"))
    ledger.worker_lost(P, 3.0, died=True)
    assert entry.sequences[0].state is State.QUEUED
    again = place(ledger, first(ledger), prefill=b"p1", decode=None)
    assert ledger.outbox[-1][1].pooling == "mean", "computed anew, with nothing of the old worker"
    ledger.on_pooled(P, Pooled(attempt.placement, b"from the dead"))
    ledger.on_pooled(b"p1", Pooled(again.placement, b"second"))
    ledger.on_prefilled(b"p1", Prefilled(again.placement, 0, 0.1, 0), 5.0)
    assert (sink.pooled, sink.ended) == (b"first", True)
    assert ledger.is_empty


def test_the_vector_of_a_job_that_was_cancelled_goes_nowhere():
    ledger, entry, attempt, sink = pooling(P, None)
    ledger.cancel(entry, 3.0)
    ledger.on_pooled(b"p1", Pooled(attempt.placement, b"a stranger's"))
    assert sink.pooled == b""
    ledger.on_cancelled(P, Cancelled(attempt.placement))
    assert ledger.is_empty


def test_a_second_decline_in_a_row_pauses():
    ledger = make_ledger()
    ledger.submit(make_job(), Sink(), 0.0)
    for _ in range(2):
        attempt = place(ledger, first(ledger))
        ledger.on_declined(D, Declined(attempt.placement, "no room"), 0.0)
    assert list(ledger.waiting.heads(0.0)) == []
    assert first(ledger, now=1.0)


def test_tokens_before_reserved_fail_the_sequence():
    ledger = make_ledger()
    sink = Sink()
    ledger.submit(make_job(), sink, 0.0)
    attempt = place(ledger, first(ledger))
    ledger.on_tokens(D, tokens(attempt, 0, 7), 1.0)
    assert sink.tokens == {}
    assert len(ledger.waiting) == 1
    assert ledger.outbox[-1] == (D, Cancel(attempt.placement))


@pytest.mark.parametrize("prefill", [None, P])
def test_planned_leaves_are_no_deaths(prefill):
    ledger = make_ledger()
    sink = Sink()
    ledger.submit(make_job(), sink, 0.0)
    for _ in range(4):
        attempt = place(ledger, first(ledger), prefill=prefill)
        begin(ledger, attempt, len(sink.tokens.get(0, [])), (7,))
        ledger.worker_lost(D, 1.0, died=False)
    assert sink.error is None
    assert sink.tokens == {0: [7, 7, 7, 7]}


def test_a_reservation_waiting_for_its_kv_is_not_in_the_plan_that_dies():
    ledger = make_ledger()
    sink = Sink()
    ledger.submit(make_job(), sink, 0.0)
    for _ in range(MAX_DEATHS + 1):
        attempt = place(ledger, first(ledger), prefill=P)
        ledger.on_reserved(D, Reserved(attempt.placement, 0, "t"))
        ledger.worker_lost(D, 1.0, died=True)
        ledger.on_cancelled(P, Cancelled(attempt.placement))
    assert sink.error is None


def test_a_prompt_that_kills_prefill_workers_is_given_up():
    ledger = make_ledger()
    sink = Sink()
    ledger.submit(make_job(), sink, 0.0)
    for _ in range(MAX_DEATHS):
        attempt = place(ledger, first(ledger), prefill=P)
        ledger.on_reserved(D, Reserved(attempt.placement, 0, "t"))
        ledger.worker_lost(P, 1.0, died=True)
        ledger.on_cancelled(D, Cancelled(attempt.placement))
    assert sink.error.status == 500
    assert ledger.is_empty


def test_one_choice_that_fails_ends_the_others_at_other_workers():
    ledger = make_ledger()
    sink = Sink()
    ledger.submit(make_job(num_choices=2), sink, 0.0)
    one = place(ledger, first(ledger), max_choices=1)
    two = place(ledger, first(ledger), decode=b"d1", max_choices=1)
    ledger.on_failed(D, Failed(one.placement, "too long", retriable=False), 1.0)
    assert sink.error.status == 400
    assert ledger.outbox[-1] == (b"d1", Cancel(two.placement))
    ledger.on_cancelled(b"d1", Cancelled(two.placement))
    assert ledger.is_empty


def test_a_late_failure_of_a_placement_given_up_does_not_fail_its_job():
    ledger = make_ledger()
    entry, attempt, sink = running(ledger)
    ledger.on_tokens(D, tokens(attempt, 5, 9), 1.0)
    ledger.on_failed(D, Failed(attempt.placement, "too long", retriable=False), 1.0)
    assert sink.error is None
    assert entry.num_open == 1


def test_a_finished_job_waits_for_no_prefilled():
    ledger = make_ledger()
    _, attempt, sink = running(ledger, prefill=P)
    ledger.on_tokens(D, tokens(attempt, 1, 8, finish="stop"), 1.0)
    assert sink.ended
    assert ledger.is_empty
    ledger.on_prefilled(P, Prefilled(attempt.placement, 0, 0.1, 1), 2.0)
    ledger.worker_lost(P, 2.0, died=True)


def test_the_dead_answer_no_cancels():
    ledger = make_ledger()
    entry, _, sink = running(ledger)
    ledger.cancel(entry, 1.0)
    assert sink.ended
    assert not ledger.is_empty
    ledger.worker_lost(D, 1.0, died=True)
    assert ledger.is_empty


def test_a_deadline_counts_until_the_first_token():
    ledger = make_ledger(request_timeout_s=10.0)
    _, _, begun = running(ledger)
    waits = Sink()
    ledger.submit(make_job("r2"), waits, 3.0)
    ledger.expire(12.9)
    assert waits.error is None
    ledger.expire(13.0)
    assert isinstance(waits.error, JobError)
    assert waits.error.status == 504
    assert begun.error is None


def test_the_queue_is_first_come_first_served_with_the_begun_in_front():
    ledger = make_ledger()
    _, attempt, _ = running(ledger)
    ledger.submit(make_job("r2", num_choices=2), Sink(), 1.0)
    ledger.submit(make_job("r3"), Sink(), 1.0)
    ledger.on_declined(D, Declined(attempt.placement, "preempted", choice=0, preempted=True), 2.0)
    assert [s.entry.job.request_id for s in ledger.waiting] == ["r1", "r2", "r2", "r3"]
    assert [s.entry.job.request_id for s in ledger.waiting.heads(2.0)] == ["r1", "r2", "r3"]


def test_priority_comes_before_arrival_and_before_what_has_begun():
    ledger = make_ledger()
    _, attempt, _ = running(ledger)
    for name, priority in (("late", 5), ("r2", 0), ("soon", -1), ("later", 5), ("soon too", -1)):
        ledger.submit(make_job(name, num_choices=2, priority=priority), Sink(), 1.0)
    ledger.on_declined(D, Declined(attempt.placement, "preempted", choice=0, preempted=True), 2.0)
    heads = [head.entry.job.request_id for head in ledger.waiting.heads(2.0)]
    assert heads == ["soon", "soon too", "r1", "r2", "late", "later"]
    ledger.cancel(ledger.entries()[3], 2.0)  # "soon"
    assert [s.entry.job.request_id for s in ledger.waiting][:2] == ["soon too"] * 2


def answer(request_id, choice, position):
    """The only right token: what every worker computes."""
    return crc32(f"{request_id} {choice} {position}".encode()) % 1000


def vector(request_id):
    return request_id.encode()


def choices_of(held):
    return [key for key in held if isinstance(key, int)]


class World:
    """Workers that compute right tokens, mostly; whose messages may come late or twice; who may die."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.ledger = make_ledger(request_timeout_s=400.0)
        self.now = 0.0
        self.alive = {"decode": [b"d0", b"d1", b"d2"], "prefill": [b"p0", b"p1"]}
        self.mail = []
        self.held = {}
        self.sinks = {}
        self.num_born = 10

    def worker(self, role):
        return self.random.choice(self.alive[role])

    def step(self):
        self.now += 1.0
        acts = [self.submit, self.place, self.place, self.deliver, self.deliver, self.deliver, self.compute,
                self.compute, self.compute, self.meddle]  # fmt: skip
        self.random.choice(acts)()
        self.carry()
        self.check()

    def submit(self):
        if len(self.sinks) - self.num_closed() < 12:
            name = f"r{len(self.sinks)}"
            sink = Sink()
            num_choices = self.random.choice([1, 1, 1, 3])
            max_tokens = 0 if self.random.random() < 0.25 else None
            job = make_job(name, num_choices, max_tokens)
            if max_tokens == 0 and num_choices == 1:
                job = dataclasses.replace(job, pooling="mean")
            self.sinks[name] = (sink, self.ledger.submit(job, sink, self.now))

    def num_closed(self):
        return sum(s.ended or s.error is not None for s, _ in self.sinks.values())

    def place(self):
        head = next(self.ledger.waiting.heads(self.now), None)
        if head is not None:
            prefill = self.worker("prefill") if self.random.random() < 0.5 else None
            decode = None if prefill and head.entry.job.prompt_only else self.worker("decode")
            place(self.ledger, head, decode=decode, prefill=prefill, now=self.now,
                  max_choices=self.random.choice([1, 8]))  # fmt: skip

    def carry(self):
        """What the ledger sends reaches living workers."""
        outbox, self.ledger.outbox = self.ledger.outbox, []
        for worker, message in outbox:
            if worker in self.alive["decode"] or worker in self.alive["prefill"]:
                self.receive(worker, message)

    def receive(self, worker, message):
        key = (worker, message.placement)
        if isinstance(message, Cancel):
            self.cancelled(key, message.choice)
            self.post(worker, Cancelled(message.placement, message.choice))
        elif isinstance(message, Reserve):
            self.held[key] = {c.index: len(unpack_ids(c.output)) for c in message.choices} | {
                "name": message.request_id
            }
            self.held[key]["ready"] = not message.remote
            self.held[key]["prompt_only"] = message.params.max_tokens == 0
            self.held[key]["pooled"] = message.pooling and message.request_id
            self.post(worker, Reserved(message.placement, 0, "t"))
        else:
            assert isinstance(message, Prefill)
            self.held[key] = {"prefill": True, "pooled": message.pooling and message.request_id}

    def cancelled(self, key, choice):
        held = self.held.get(key, {})
        held.pop(choice, None)
        if choice is None or not choices_of(held):
            self.held.pop(key, None)

    def post(self, worker, message):
        self.mail.append((worker, message))

    def compute(self):
        """Some worker gets on with something it holds."""
        if not self.held:
            return
        worker, placement = key = self.random.choice(list(self.held))
        held = self.held[key]
        if "prefill" in held:
            del self.held[key]
            self.tell_vector(worker, placement, held)
            self.post(worker, Prefilled(placement, 0, 0.1, 1, self.random.random()))
            for other, seen in self.held.items():
                if other[1] == placement:
                    seen["ready"] = True
        elif held["ready"]:
            self.generate(worker, placement, held)

    def tell_vector(self, worker, placement, held):
        if held["pooled"]:
            self.post(worker, Pooled(placement, vector(held["pooled"])))

    def generate(self, worker, placement, held):
        self.tell_vector(worker, placement, held)
        rows = []
        for choice in choices_of(held):
            count = 0 if held["prompt_only"] else self.random.choice([1, 1, 2])
            ids = tuple(answer(held["name"], choice, held[choice] + i) for i in range(count))
            finish = "length" if not count else "stop" if self.random.random() < 0.2 else None
            rows.append(TokenRow(placement, choice, held[choice], ids, finish))
            held[choice] += count
            if finish:
                self.cancelled((worker, placement), choice)
        self.post(worker, Tokens(tuple(rows)))

    def deliver(self):
        """Mail of one worker comes in order; rarely twice, rarely out of order."""
        if not self.mail:
            return
        worker = self.random.choice(self.mail)[0]
        own = [i for i, (who, _) in enumerate(self.mail) if who == worker]
        at = own[0] if self.random.random() < 0.99 else self.random.choice(own)
        twice = self.random.random() < 0.01
        message = self.mail[at][1] if twice else self.mail.pop(at)[1]
        if worker in self.alive["decode"] or worker in self.alive["prefill"]:
            self.hand(worker, message)

    def hand(self, worker, message):
        ledger = self.ledger
        match message:
            case Reserved():
                ledger.on_reserved(worker, message)
            case Prefilled():
                ledger.on_prefilled(worker, message, self.now)
            case Pooled():
                ledger.on_pooled(worker, message)
            case Tokens():
                ledger.on_tokens(worker, message, self.now)
            case Declined():
                ledger.on_declined(worker, message, self.now)
            case Failed():
                ledger.on_failed(worker, message, self.now)
            case Cancelled():
                ledger.on_cancelled(worker, message)

    def meddle(self):
        act = self.random.choice(
            [self.kill, self.cancel, self.stop, self.decline, self.decline, self.fail, self.expire]
        )
        act()

    def kill(self):
        if self.random.random() < 0.3:
            role = self.random.choice(["decode", "prefill"])
            worker = self.alive[role].pop(self.random.randrange(len(self.alive[role])))
            self.num_born += 1
            self.alive[role].append(b"%s%d" % (role[:1].encode(), self.num_born))
            self.held = {key: held for key, held in self.held.items() if key[0] != worker}
            self.ledger.worker_lost(worker, self.now, died=self.random.random() < 0.5)

    def cancel(self):
        if self.sinks:
            self.ledger.cancel(self.random.choice(list(self.sinks.values()))[1], self.now)

    def stop(self):
        if self.sinks:
            entry = self.random.choice(list(self.sinks.values()))[1]
            self.ledger.stop(entry, self.random.randrange(entry.job.num_choices), self.now)

    def decline(self):
        if self.held:
            (worker, placement), held = self.random.choice(list(self.held.items()))
            if "prefill" not in held:
                choice = self.random.choice([None, *choices_of(held)])
                self.cancelled((worker, placement), choice)
                self.post(worker, Declined(placement, "no room", choice, preempted=held["ready"]))

    def fail(self):
        if self.held:
            worker, placement = key = self.random.choice(list(self.held))
            del self.held[key]
            self.post(worker, Failed(placement, "broken", retriable=self.random.random() < 0.8))

    def expire(self):
        self.ledger.expire(self.now)

    def check(self):
        ledger = self.ledger
        queued = {id(s) for s in ledger.waiting}
        for sink, entry in self.sinks.values():
            open_ones = [s for s in entry.sequences if s.state not in FINAL]
            assert sink.pooled in (b"", vector(entry.job.request_id))
            assert sink.pooled or not (entry.job.pooling and sink.reasons)
            assert entry.num_open == len(open_ones)
            assert bool(open_ones) != (sink.ended or sink.error is not None)
            for s in entry.sequences:
                assert (id(s) in queued) == (s.state is State.QUEUED)
                assert (s.attempt is None) == (s.state is State.QUEUED or s.state in FINAL)
                assert s.attempt is None or s.attempt.sequences[s.choice] is s
                assert s.output == sink.tokens.get(s.choice, [])
                assert s.num_deaths < MAX_DEATHS or s.state in FINAL
        for worker in {w for role in self.alive.values() for w in role}:
            for attempt in ledger.attempts_of(worker):
                assert attempt.sequences or attempt.awaited
                involved = {attempt.decode, attempt.prefill}
                assert {who for who, _ in attempt.awaited} <= involved

    def finish(self):
        """No more trouble: everything comes to its end."""
        for _ in range(20_000):
            if self.num_closed() == len(self.sinks) and not self.mail and not self.held:
                return
            self.now += 1.0
            self.random.choice([self.place, self.deliver, self.compute])()
            self.carry()
        raise AssertionError("some job never ended")


SEEDS = range(6)


@cache
def walked(seed):
    """(the world after a long walk, how often each move of the state table was made)."""
    moves = Counter()
    move = Sequence.move

    def counted(sequence, state):
        before = sequence.state
        move(sequence, state)
        moves[before, state] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sequence, "move", counted)
        walk = World(seed)
        for _ in range(3000):
            walk.step()
        walk.finish()
    return walk, moves


def test_every_legal_move_is_made():
    made = sum((walked(seed)[1] for seed in SEEDS), Counter())
    legal = {(before, after) for before, moves in LEGAL_MOVES.items() for after in moves}
    assert set(made) == legal


@pytest.mark.parametrize("seed", SEEDS)
def test_random_walk(seed):
    walk, _ = walked(seed)
    assert walk.ledger.is_empty
    outcomes = Counter("ended" if s.ended else s.error.status for s, _ in walk.sinks.values())
    assert outcomes["ended"] > 50
    assert outcomes[500] + outcomes[400] > 2, "trouble was made"
    for name, (sink, _) in walk.sinks.items():
        for choice, ids in sink.tokens.items():
            assert ids == [answer(name, choice, i) for i in range(len(ids))]
    warmed = [(sink, entry) for sink, entry in walk.sinks.values() if entry.job.prompt_only and sink.ended]
    assert sum(reason == "length" for sink, _ in warmed for reason in sink.reasons.values()) > 5
    assert not any(ids for sink, _ in warmed for ids in sink.tokens.values())
