"""A job's times by stage, and its line in the history."""

from .history import Record
from .job import JobTimings
from .sequence import Attempt, Entry


def date_prefill(attempt: Attempt) -> None:
    """Writes down in its job when the prompt was computed for decode, if this attempt gave the first token. Either
    may be heard of first."""
    entry, at = attempt.entry, attempt.prefilled_at
    if entry.answered_by == attempt.placement and attempt.decode is not None and at is not None:
        assert entry.first_token_at is not None
        entry.prefilled_at = min(at, entry.first_token_at)


def record(
    entry: Entry,
    stages: JobTimings,
    ended_at: float | None = None,
    outcome: str | None = None,
    at_stop_string: bool = False,
) -> Record:
    """What there is to tell of a job, while it runs or at its end."""
    attempt = next((s.attempt for s in entry.sequences if s.attempt is not None), None)
    prefill, decode = (entry.prefill, entry.decode) if attempt is None else (attempt.prefill, attempt.decode)
    return Record(
        request_id=entry.job.request_id,
        prompt_index=entry.job.prompt_index,
        submitted_at=entry.submitted_at,
        stages=stages,
        num_choices=entry.job.num_choices,
        num_prompt_tokens=entry.num_prompt_tokens,
        num_output_tokens=sum(len(s.output) for s in entry.sequences),
        seed=entry.job.params.seed,
        prefill=prefill,
        decode=decode,
        ended_at=ended_at,
        outcome=outcome,
        at_stop_string=at_stop_string,
    )


def timings(entry: Entry, now: float) -> JobTimings:
    """Stage times so far; a stage that has not begun counts 0."""
    placed_at = now if entry.placed_at is None else entry.placed_at
    first = placed_at if entry.first_token_at is None else entry.first_token_at
    computed = first if entry.prefilled_at is None else entry.prefilled_at
    last = first if entry.last_token_at is None else entry.last_token_at
    return JobTimings(
        queue_s=placed_at - entry.submitted_at,
        prefill_s=computed - placed_at,
        transfer_s=first - computed,
        decode_s=last - first,
        num_cached_tokens=entry.num_cached_tokens,
    )
