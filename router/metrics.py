"""What the router counts of requests, and what it knows of its workers when /metrics is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .histogram import Histogram
from .job import JobTimings

TTFT_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
ITL_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
REQUEST_BOUNDS_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKEN_BOUNDS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
BYTE_BOUNDS = tuple(float(4**e) for e in range(8, 19))
COUNT_BOUNDS = (1, 2, 5, 10, 20)
FINISH_REASONS = ("stop", "length", "abort", "error")

Path = Literal["prefill-decode", "decode", "prefill"]
"""Where a placement runs: its prompt on one worker and its answer on another, all on a decode worker, or a prompt alone
on a prefill worker."""
PATHS: tuple[Path, ...] = ("prefill-decode", "decode", "prefill")


@dataclass(frozen=True, slots=True)
class WorkerGauges:
    """One worker, when /metrics is asked for."""

    worker: str
    role: str
    num_running: int
    num_waiting: int
    block_size: int
    """Tokens of a KV block."""
    num_blocks: int
    kv_cache_usage: float
    """Share of its blocks in use, 0 to 1."""
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_transferred_bytes: int
    transfer_s: float
    num_expired_leases: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_accepted_per_position: tuple[int, ...]
    """Of the first token of each draft, the second, …"""


WORKER_COUNTERS: tuple[tuple[str, str, Callable[[WorkerGauges], float]], ...] = (
    ("prefix_cache_queries", "Prompt tokens looked up.", lambda w: w.prefix_cache_queries),
    ("prefix_cache_hits", "Prompt tokens found cached.", lambda w: w.prefix_cache_hits),
    ("kv_transfer_bytes", "KV bytes sent or received.", lambda w: w.num_transferred_bytes),
    (
        "kv_transfer_seconds",
        "Seconds of it: after computing on prefill, storing on decode workers.",
        lambda w: w.transfer_s,
    ),
    ("kv_expired_leases", "Reservations given up.", lambda w: w.num_expired_leases),
    ("spec_decode_num_drafts", "Times that tokens were guessed for a sequence.", lambda w: w.num_drafts),
    ("spec_decode_num_draft_tokens", "Tokens guessed.", lambda w: w.num_draft_tokens),
    ("spec_decode_num_accepted_tokens", "Tokens guessed right.", lambda w: w.num_accepted_tokens),
)
"""Name, help, and what one worker has counted since it started."""


@dataclass(frozen=True, slots=True)
class LinkGauges:
    """KV from one prefill to one decode worker, of those that live."""

    prefill: str
    decode: str
    num_transfers: int
    num_bytes: int
    bytes_per_s: float
    """Lately, while no computation hid it."""


LINK_COUNTERS: tuple[tuple[str, str, Callable[[LinkGauges], float]], ...] = (
    ("kv_link_transfers", "Prompts whose KV was sent.", lambda link: link.num_transfers),
    ("kv_link_bytes", "Bytes of their KV.", lambda link: link.num_bytes),
)
"""Name, help, and what one link has carried."""


@dataclass(frozen=True, slots=True)
class Gauges:
    num_running: int
    num_waiting: int
    workers: tuple[WorkerGauges, ...]
    links: tuple[LinkGauges, ...] = ()


class Metrics:
    """Counts as the router goes. Observing is a few additions; text is made when asked for."""

    def __init__(self) -> None:
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_workers_lost = 0
        self.num_finished = dict.fromkeys(FINISH_REASONS, 0)
        self.num_placements = dict.fromkeys(PATHS, 0)
        self.ttft_s = Histogram(TTFT_BOUNDS_S)
        self.itl_s = Histogram(ITL_BOUNDS_S)
        self.e2e_s = Histogram(REQUEST_BOUNDS_S)
        self.queue_s = Histogram(REQUEST_BOUNDS_S)
        self.prefill_s = Histogram(REQUEST_BOUNDS_S)
        self.transfer_s = Histogram(TTFT_BOUNDS_S)
        self.decode_s = Histogram(REQUEST_BOUNDS_S)
        self.inference_s = Histogram(REQUEST_BOUNDS_S)
        self.time_per_output_token_s = Histogram(ITL_BOUNDS_S)
        self.prompt_tokens = Histogram(TOKEN_BOUNDS)
        self.generation_tokens = Histogram(TOKEN_BOUNDS)
        self.longest_generation_tokens = Histogram(TOKEN_BOUNDS)
        self.transfer_bytes = Histogram(BYTE_BOUNDS)

    def count_tokens(self, num_tokens: int, since_last_s: float, *, first: bool) -> None:
        """Tokens that came together for one sequence; the first of its life have no inter-token latency."""
        self.num_generation_tokens += num_tokens
        if num_tokens and not first:
            self.itl_s.observe(since_last_s / num_tokens, num_tokens)

    def count_prompt(self, num_tokens: int) -> None:
        """The prompt of a job has been computed."""
        self.num_prompt_tokens += num_tokens
        self.prompt_tokens.observe(num_tokens)

    def count_finished(self, finish_reason: str, num_tokens: int, decode_s: float) -> None:
        """One sequence has ended. `decode_s`: from its job's first token to its own last."""
        self.num_finished[finish_reason] += 1
        self.generation_tokens.observe(num_tokens)
        if num_tokens > 1:
            self.time_per_output_token_s.observe(decode_s / (num_tokens - 1))

    def observe_stages(self, stages: JobTimings, *, transferred: bool) -> None:
        """A job has ended whose prompt was computed; `transferred`: by a prefill worker for a decode worker."""
        self.queue_s.observe(stages.queue_s)
        self.prefill_s.observe(stages.prefill_s)
        if transferred:
            self.transfer_s.observe(stages.transfer_s)
        self.decode_s.observe(stages.decode_s)
        self.inference_s.observe(stages.prefill_s + stages.transfer_s + stages.decode_s)
