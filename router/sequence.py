"""What the ledger writes down: jobs, their sequences, and the attempts to run them."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Protocol

from ..wire.codec import pack_ids
from ..wire.logprobs import TokenLogprobs
from ..wire.messages import Choice
from .job import Job, JobError, NewTokens
from .states import FINAL, State, check_move

WorkerId = bytes
"""A worker in one epoch: its socket identity."""


class Sink(Protocol):
    """Where the tokens of a job go."""

    prompt_logprobs: Rows[TokenLogprobs]
    """Set before the first `push`, where the job asks."""
    pooled: bytes
    """Set before the end, where the job asks."""

    def push(self, tokens: NewTokens) -> None: ...

    def end(self) -> None:
        """Every choice has finished or was stopped."""

    def fail(self, error: JobError) -> None: ...


@dataclass(slots=True, eq=False)
class Entry:
    """One job."""

    job: Job
    sink: Sink
    arrival: int
    submitted_at: float
    prompt: bytes
    num_open: int
    """Sequences in no final state."""
    sequences: list["Sequence"] = field(default_factory=list)
    """By choice; empty once all have ended."""
    answered_by: int | None = None
    """The placement that gave the first token, or computed the prompt where no token is wanted."""
    placed_at: float | None = None
    """When that one was placed."""
    prefill: WorkerId | None = None
    decode: WorkerId | None = None
    """Where it ran."""
    prefilled_at: float | None = None
    """When a prefill worker had computed its prompt for a decode worker."""
    first_token_at: float | None = None
    """When the prompt was computed, where no token is wanted."""
    last_token_at: float | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as workers have told."""
    pooled: bytes = b""
    """The prompt's vector, once a worker has told."""

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt) // 4

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Likeliest tokens that a worker has yet to name beside each token of the prompt; None: it has nothing to."""
        complete = len(self.prompt_logprobs) == self.num_prompt_tokens - 1
        return None if complete else self.job.params.prompt_logprobs

    def learn_prompt(self, position: int, rows: Rows[TokenLogprobs]) -> None:
        """Takes in what is new. Each placement begins anew, and goes on without a gap."""
        known = self.prompt_logprobs
        assert position <= len(known) + 1
        known += rows[len(known) + 1 - position :]
        if self.num_prompt_logprobs is None:
            self.sink.prompt_logprobs = known

    @property
    def awaits_vector(self) -> bool:
        return self.job.pooling is not None and not self.pooled

    def learn_vector(self, values: bytes) -> None:
        """The first that is told counts: a replay tells it again."""
        if self.awaits_vector:
            self.pooled = self.sink.pooled = values


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a job: the unit that is queued, runs and ends."""

    entry: Entry
    choice: int
    state: State = State.QUEUED
    output: list[int] = field(default_factory=list)
    sampler_state: bytes = b""
    """After the last token of `output`."""
    epoch: int = 0
    """Of rewinding, when the last token of `output` was drawn."""
    attempt: "Attempt | None" = None
    """Where it runs, in every state between QUEUED and the final ones."""
    urgent: bool = False
    """It had begun before: it waits at the front of the queue, among those of its priority."""
    num_failures: int = 0
    num_deaths: int = 0
    """Workers that died while they may have been computing it."""
    num_declines: int = 0
    """In a row."""
    retry_at: float = 0.0
    passed_since: float | None = None
    """When a younger one was first placed before it."""
    held: WorkerId | None = None
    """The decode worker that takes nothing younger until this sequence has been placed."""
    token_at: float = 0.0

    def move(self, state: State) -> None:
        """Raises IllegalMove."""
        check_move(self.state, state)
        self.state = state

    @property
    def is_open(self) -> bool:
        return self.state not in FINAL

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV a placement needs."""
        return self.entry.num_prompt_tokens + len(self.output)

    @property
    def queue_key(self) -> tuple[int, bool, int, int]:
        return (self.entry.job.priority, not self.urgent, self.entry.arrival, self.choice)

    def as_choice(self) -> Choice:
        return Choice(self.choice, pack_ids(self.output) if self.output else b"", self.sampler_state, self.epoch)


@dataclass(slots=True, eq=False)
class Attempt:
    """One placement: a prompt sent to workers for some of its job's choices."""

    placement: int
    entry: Entry
    decode: WorkerId | None
    """None: the prompt is all there is to do, on the prefill worker alone."""
    prefill: WorkerId | None
    data_endpoint: str
    token_ids: bytes
    """What a prefill worker computes: the prompt and earlier output."""
    placed_at: float
    sequences: dict[int, Sequence] = field(default_factory=dict)
    """Choices that run here now."""
    prefill_sent: bool = False
    prefill_ended: bool = False
    prefilled_at: float | None = None
    """When the prefill worker had computed the prompt; None until it has said so."""
    num_cached_tokens: int = 0
    awaited: set[tuple[WorkerId, int | None]] = field(default_factory=set)
    """Workers, and choices, of which a Cancelled is still to come."""

    @property
    def workers(self) -> tuple[WorkerId, ...]:
        return tuple(worker for worker in (self.decode, self.prefill) if worker is not None)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) // 4

    @property
    def prefill_waits(self) -> bool:
        """A prefill worker was chosen and nothing was sent to it yet."""
        return self.prefill is not None and not self.prefill_sent and bool(self.sequences)

    @property
    def prefill_busy(self) -> bool:
        return self.prefill_sent and not self.prefill_ended
