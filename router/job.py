"""What the HTTP edge asks of the router's core, and what it gets back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from ..wire.logprobs import TokenLogprobs
from ..wire.messages import FinishReason, Pooling
from ..wire.sampling import SamplingParams

if TYPE_CHECKING:
    from .timelines import Timeline
    from .topology import Topology


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt, for one or more choices."""

    request_id: str
    prompt_index: int
    """Among the prompts of the request."""
    prompt_ids: Sequence[int]
    num_choices: int
    params: SamplingParams
    """`seed` resolved, `max_tokens` cut to what the context leaves; 0: the prompt is computed, to be found in a prefix
    cache, and each choice ends with no token."""
    eos_ids: tuple[int, ...]
    pooling: Pooling | None = None
    """One vector of the prompt is wanted: then `max_tokens` is 0, and there is one choice."""
    priority: int = 0
    """The lower, the sooner it leaves the queue."""
    salt: bytes = b""
    """Of its block hashes: KV is shared only under the same one."""

    @property
    def prompt_only(self) -> bool:
        """It needs no decoding."""
        return self.params.max_tokens == 0


class NewTokens(Struct, frozen=True):
    choice: int
    token_ids: Sequence[int]
    finish_reason: FinishReason | None = None
    """With the last tokens of the choice."""
    stop_token_id: int | None = None
    logprobs: Sequence[TokenLogprobs] = ()
    """Of each token, where the job asks."""


@dataclass(frozen=True, slots=True)
class JobTimings:
    """Seconds spent in each stage by the job's first placement that gave a token (or computed the prompt, where no
    token is wanted). They add up to the time from submission to the last token."""

    queue_s: float
    prefill_s: float
    """From placement until the prompt is computed; without a prefill worker, until the first token."""
    transfer_s: float
    """From then to the first token: what is left of the transfer, and the first draw. 0 without a prefill worker, and
    where nothing was heard of it yet."""
    decode_s: float
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class JobWorkers:
    """Names of those of the placement that `JobTimings` is about. None: none took part, or none has answered yet."""

    prefill: str | None
    decode: str | None


class JobError(Exception):
    """The job cannot be served; no more tokens come.

    `status` is the HTTP status (400 could never fit, 503 queue full or nothing to run on, 504 deadline passed,
    500 failed), `retry_after_s` goes into the Retry-After header.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


def no_text(model: str) -> JobError:
    """What is told where text is asked of an encoder."""
    return JobError(400, f"the model {model} gives embeddings: it does not generate text")


class Stream(Protocol):
    """The tokens of one job, as they come."""

    prompt_logprobs: Sequence[TokenLogprobs]
    """Of the prompt's tokens from the second on, where the job asks: there before the first token is."""
    pooled: bytes
    """The prompt's vector, where the job asks: little-endian float32, there before the choice ends."""

    async def next(self) -> Sequence[NewTokens]:
        """All that has come since the last call, waiting for something; empty once every choice has finished or
        was stopped. Raises JobError."""

    def stop(self, choice: int) -> None:
        """No more tokens of this choice are wanted: a stop string matched."""

    def cancel(self) -> None:
        """No more of any choice. Safe in every state, and twice."""

    def timings(self) -> JobTimings: ...

    def workers(self) -> JobWorkers: ...


class Core(Protocol):
    """Queue, placement and workers, as HTTP handlers see them. Everything runs on the event loop's thread."""

    def submit(self, job: Job) -> Stream:
        """Queues the job. Raises JobError at once if the queue is full (503) or it could never fit (400)."""

    @property
    def ready(self) -> bool:
        """Whether at least one worker is ready that can serve requests: a decode worker, for an encoder a prefill
        worker."""

    def metrics(self) -> bytes:
        """Prometheus text."""

    def drain_worker(self, name: str) -> bool:
        """Asks a worker to finish what it has and leave; False if there is none of this name."""

    def topology(self) -> "Topology":
        """The workers at this moment, and the links between them."""

    def timelines(self) -> "Sequence[Timeline]":
        """The latest jobs, newest first."""
