"""What /metrics shows: vLLM's names behind `isthmus:`, so that its dashboards need one prefix changed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .histogram import Histogram
from .job import JobTimings

TTFT_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
ITL_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
REQUEST_BOUNDS_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKEN_BOUNDS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
FINISH_REASONS = ("stop", "length", "abort", "error")


@dataclass(frozen=True, slots=True)
class WorkerGauges:
    """One worker, when /metrics is asked for."""

    worker: str
    role: str
    num_running: int
    num_waiting: int
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
    ("kv_transfer_seconds", "Time that took.", lambda w: w.transfer_s),
    ("kv_expired_leases", "Reservations given up.", lambda w: w.num_expired_leases),
    ("spec_decode_num_drafts", "Times that tokens were guessed for a sequence.", lambda w: w.num_drafts),
    ("spec_decode_num_draft_tokens", "Tokens guessed.", lambda w: w.num_draft_tokens),
    ("spec_decode_num_accepted_tokens", "Tokens guessed right.", lambda w: w.num_accepted_tokens),
)
"""Name, help, and what one worker has counted since it started."""


@dataclass(frozen=True, slots=True)
class Gauges:
    num_running: int
    num_waiting: int
    workers: tuple[WorkerGauges, ...]


class Metrics:
    """Counts as the router goes. Observing is a few additions; text is made when asked for."""

    def __init__(self) -> None:
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_workers_lost = 0
        self.num_finished = dict.fromkeys(FINISH_REASONS, 0)
        self.ttft_s = Histogram(TTFT_BOUNDS_S)
        self.itl_s = Histogram(ITL_BOUNDS_S)
        self.e2e_s = Histogram(REQUEST_BOUNDS_S)
        self.queue_s = Histogram(REQUEST_BOUNDS_S)
        self.prefill_s = Histogram(REQUEST_BOUNDS_S)
        self.transfer_s = Histogram(TTFT_BOUNDS_S)
        self.decode_s = Histogram(REQUEST_BOUNDS_S)
        self.prompt_tokens = Histogram(TOKEN_BOUNDS)
        self.generation_tokens = Histogram(TOKEN_BOUNDS)

    def count_tokens(self, num_tokens: int, since_last_s: float, *, first: bool) -> None:
        """Tokens that came together for one sequence; the first of its life have no inter-token latency."""
        self.num_generation_tokens += num_tokens
        if num_tokens and not first:
            self.itl_s.observe(since_last_s / num_tokens, num_tokens)

    def count_prompt(self, num_tokens: int) -> None:
        """The prompt of a job has been computed."""
        self.num_prompt_tokens += num_tokens
        self.prompt_tokens.observe(num_tokens)

    def count_finished(self, finish_reason: str, num_tokens: int) -> None:
        """One sequence has ended."""
        self.num_finished[finish_reason] += 1
        self.generation_tokens.observe(num_tokens)

    def observe_stages(self, stages: JobTimings, *, transferred: bool) -> None:
        """A job has ended whose prompt was computed; `transferred`: by a prefill worker for a decode worker."""
        self.queue_s.observe(stages.queue_s)
        self.prefill_s.observe(stages.prefill_s)
        if transferred:
            self.transfer_s.observe(stages.transfer_s)
        self.decode_s.observe(stages.decode_s)


class MetricsPage(Collector):
    """Renders `Metrics` and the gauges of the moment as Prometheus text."""

    def __init__(self, metrics: Metrics, gauges: Callable[[], Gauges], *, model: str, prefix: str = "isthmus"):
        self._metrics = metrics
        self._gauges = gauges
        self._labels = {"model_name": model}
        self._prefix = prefix
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        gauges = self._gauges()
        yield self._gauge("num_requests_running", "Sequences at a worker.", gauges.num_running)
        yield self._gauge("num_requests_waiting", "Sequences in the router's queue.", gauges.num_waiting)
        yield from self._counters()
        yield from self._histograms()
        yield from self._worker_gauges(gauges.workers)
        yield from self._worker_counters(gauges.workers)
        yield self._accepted_per_position(gauges.workers)

    def _counters(self) -> Iterator[Metric]:
        m = self._metrics
        yield self._counter("num_preemptions", "Sequences that decode workers sent back.", m.num_preemptions)
        yield self._counter("prompt_tokens", "Tokens of prompts that were computed.", m.num_prompt_tokens)
        yield self._counter("generation_tokens", "Tokens generated.", m.num_generation_tokens)
        yield self._counter("workers_lost", "Workers that died, hung or broke the protocol.", m.num_workers_lost)
        finished = CounterMetricFamily(
            self._name("request_success"), "Sequences that ended.", labels=[*self._labels, "finished_reason"]
        )
        for reason, count in m.num_finished.items():
            finished.add_metric([*self._labels.values(), reason], count)
        yield finished

    def _histograms(self) -> Iterator[Metric]:
        m = self._metrics
        for name, help_text, histogram in (
            ("time_to_first_token_seconds", "From submission to first token.", m.ttft_s),
            ("inter_token_latency_seconds", "Between tokens of a sequence.", m.itl_s),
            ("e2e_request_latency_seconds", "From submission to the last choice's end.", m.e2e_s),
            ("request_queue_time_seconds", "In the router's queue.", m.queue_s),
            ("request_prefill_time_seconds", "From placement until the prompt is computed.", m.prefill_s),
            ("request_transfer_time_seconds", "From then to first token, if KV was moved.", m.transfer_s),
            ("request_decode_time_seconds", "From first to last token.", m.decode_s),
            ("request_prompt_tokens", "Prompt length.", m.prompt_tokens),
            ("request_generation_tokens", "Output length of a sequence.", m.generation_tokens),
        ):
            yield histogram.family(self._name(name), help_text, self._labels)

    def _worker_gauges(self, workers: tuple[WorkerGauges, ...]) -> Iterator[Metric]:
        labels = self._worker_labels
        running = GaugeMetricFamily(self._name("worker_requests_running"), "In the worker's batch.", labels=labels)
        waiting = GaugeMetricFamily(self._name("worker_requests_waiting"), "Accepted, not begun.", labels=labels)
        usage = GaugeMetricFamily(self._name("kv_cache_usage_perc"), "Share of KV blocks in use.", labels=labels)
        for w in workers:
            values = self._worker_values(w)
            running.add_metric(values, w.num_running)
            waiting.add_metric(values, w.num_waiting)
            usage.add_metric(values, w.kv_cache_usage)
        yield from (running, waiting, usage)

    def _worker_counters(self, workers: tuple[WorkerGauges, ...]) -> Iterator[Metric]:
        for name, help_text, count in WORKER_COUNTERS:
            family = CounterMetricFamily(self._name(name), help_text, labels=self._worker_labels)
            for w in workers:
                family.add_metric(self._worker_values(w), count(w))
            yield family

    def _accepted_per_position(self, workers: tuple[WorkerGauges, ...]) -> Metric:
        name = self._name("spec_decode_num_accepted_tokens_per_pos")
        labels = [*self._worker_labels, "position"]
        family = CounterMetricFamily(name, "Tokens guessed right, by their place in the draft, from 0.", labels=labels)
        for w in workers:
            for position, count in enumerate(w.num_accepted_per_position):
                family.add_metric([*self._worker_values(w), str(position)], count)
        return family

    @property
    def _worker_labels(self) -> list[str]:
        return [*self._labels, "worker", "role"]

    def _worker_values(self, worker: WorkerGauges) -> list[str]:
        return [*self._labels.values(), worker.worker, worker.role]

    def _name(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(self._name(name), help_text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> Metric:
        family = CounterMetricFamily(self._name(name), help_text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family
