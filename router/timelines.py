"""How long each of the latest requests spent in each stage, those that still run included."""

from msgspec import Struct

from ..wire.worker_link import name_in
from .history import Record
from .job import JobTimings
from .ledger import Ledger
from .sequence import Entry, WorkerId
from .stages import record, timings


class Timeline(Struct, frozen=True):
    """One prompt of a request. The stages follow one another, and add up to the time until its last token."""

    request_id: str
    """The request's X-Request-Id."""
    prompt_index: int
    """Of the prompt in its request, from 0."""
    outcome: str | None
    """Of the choice that ended last: stop, length, abort or error; null while it runs."""
    at_stop_string: bool
    """Whether that choice ended at a stop string."""
    age_s: float
    """Since it was submitted, seconds."""
    ended_s: float | None
    """Since it has ended, seconds; null while it runs."""
    queue_s: float
    """Seconds until it was placed on workers."""
    prefill_s: float
    """Seconds from then until the prompt was computed; without a prefill worker, until the first token."""
    transfer_s: float
    """Seconds from then to the first token, while the rest of its KV moved; 0 without a prefill worker."""
    decode_s: float
    """Seconds from the first token to the last."""
    num_choices: int
    """Answers to make of it."""
    num_prompt_tokens: int
    """Tokens of the prompt, those found in a cache included."""
    num_cached_tokens: int
    """Those of them whose KV was there already."""
    num_output_tokens: int
    """Tokens of all its choices, so far."""
    seed: int
    """That its tokens are drawn from: the request's, or one that was made for it."""
    prefill: str | None
    """Name of the worker that computed its prompt; null where none did, or none has yet."""
    decode: str | None
    """Name of the worker that computed its tokens; null where none did, or none has yet."""


def take_timelines(ledger: Ledger, now: float) -> list[Timeline]:
    """The newest first."""
    running = [record(e, stages_so_far(e, now)) for e in reversed(ledger.entries()) if e.num_open]
    return [timeline(each, now) for each in (*running, *ledger.history)]


def timeline(of: Record, now: float) -> Timeline:
    return Timeline(
        request_id=of.request_id,
        prompt_index=of.prompt_index,
        outcome=of.outcome,
        at_stop_string=of.at_stop_string,
        age_s=now - of.submitted_at,
        ended_s=None if of.ended_at is None else now - of.ended_at,
        queue_s=of.stages.queue_s,
        prefill_s=of.stages.prefill_s,
        transfer_s=of.stages.transfer_s,
        decode_s=of.stages.decode_s,
        num_choices=of.num_choices,
        num_prompt_tokens=of.num_prompt_tokens,
        num_cached_tokens=of.stages.num_cached_tokens,
        num_output_tokens=of.num_output_tokens,
        seed=of.seed,
        prefill=name_of(of.prefill),
        decode=name_of(of.decode),
    )


def stages_so_far(entry: Entry, now: float) -> JobTimings:
    """They add up to the job's age: the stage it is in has lasted until now."""
    if entry.first_token_at is not None:
        stages = timings(entry, now)
        return JobTimings(
            stages.queue_s, stages.prefill_s, stages.transfer_s, now - entry.first_token_at, stages.num_cached_tokens
        )
    attempt = next((s.attempt for s in entry.sequences if s.attempt is not None), None)
    placed_at = now if attempt is None else attempt.placed_at
    computed_at = now if attempt is None or attempt.prefilled_at is None else attempt.prefilled_at
    num_cached = 0 if attempt is None else attempt.num_cached_tokens
    return JobTimings(placed_at - entry.submitted_at, computed_at - placed_at, now - computed_at, 0.0, num_cached)


def name_of(worker: WorkerId | None) -> str | None:
    return None if worker is None else name_in(worker)
