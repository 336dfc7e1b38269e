"""What /metrics shows of requests and workers: vLLM's names behind a prefix, so that its dashboards need one word
changed, and what prefill and decode in separate processes adds to them."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import Metric

from .metrics import LINK_COUNTERS, WORKER_COUNTERS, Gauges, LinkGauges, Metrics, WorkerGauges
from .page import DEFAULT_PREFIX, Page, rows

WORKER_LABELS = ("worker", "role")
LINK_LABELS = ("prefill", "decode")


class MetricsPage(Page):
    """Renders `Metrics` and the gauges of the moment."""

    def __init__(self, metrics: Metrics, gauges: Callable[[], Gauges], *, model: str, prefix: str = DEFAULT_PREFIX):
        self._metrics = metrics
        self._gauges = gauges
        super().__init__(prefix, {"model_name": model})

    def collect(self) -> Iterator[Metric]:
        gauges = self._gauges()
        yield self.gauge("num_requests_running", "Sequences at a worker.", gauges.num_running)
        yield self.gauge("num_requests_waiting", "Sequences in the router's queue.", gauges.num_waiting)
        yield from self._counters()
        yield from self._histograms()
        yield from self._worker_gauges(gauges.workers)
        yield from self._worker_counters(gauges.workers)
        yield from self._links(gauges.links)

    def _counters(self) -> Iterator[Metric]:
        m = self._metrics
        yield self.counter("num_preemptions", "Sequences that decode workers sent back.", m.num_preemptions)
        yield self.counter("prompt_tokens", "Tokens of prompts that were computed.", m.num_prompt_tokens)
        yield self.counter("generation_tokens", "Tokens generated.", m.num_generation_tokens)
        yield self.counter("workers_lost", "Workers that died, hung or broke the protocol.", m.num_workers_lost)
        finished = rows(m.num_finished.items())
        yield self.counters("request_success", "Sequences that ended.", ["finished_reason"], finished)
        placements = rows(m.num_placements.items())
        yield self.counters("placements", "Prompts sent to workers, by the roles they went to.", ["path"], placements)

    def _histograms(self) -> Iterator[Metric]:
        m = self._metrics
        for name, help_text, histogram in (
            ("time_to_first_token_seconds", "From submission to first token.", m.ttft_s),
            ("inter_token_latency_seconds", "Between tokens of a sequence.", m.itl_s),
            (
                "request_time_per_output_token_seconds",
                "From first to last token, divided by the tokens after the first.",
                m.time_per_output_token_s,
            ),
            ("e2e_request_latency_seconds", "From submission to the last choice's end.", m.e2e_s),
            ("request_queue_time_seconds", "In the router's queue.", m.queue_s),
            ("request_prefill_time_seconds", "From placement until the prompt is computed.", m.prefill_s),
            ("request_transfer_time_seconds", "From then to first token, if KV was moved.", m.transfer_s),
            ("request_decode_time_seconds", "From first to last token.", m.decode_s),
            ("request_inference_time_seconds", "From placement to last token.", m.inference_s),
            ("request_prompt_tokens", "Prompt length.", m.prompt_tokens),
            ("request_generation_tokens", "Output length of a sequence.", m.generation_tokens),
            (
                "request_max_num_generation_tokens",
                "Output length of a prompt's longest sequence.",
                m.longest_generation_tokens,
            ),
            ("request_transfer_bytes", "KV sent for a prompt.", m.transfer_bytes),
        ):
            yield self.histogram(name, help_text, histogram)

    def _worker_gauges(self, workers: Sequence[WorkerGauges]) -> Iterator[Metric]:
        for name, help_text, values in (
            ("worker_requests_running", "In the worker's batch.", [(about(w), w.num_running) for w in workers]),
            ("worker_requests_waiting", "Accepted, not begun.", [(about(w), w.num_waiting) for w in workers]),
            ("kv_cache_usage_perc", "Share of KV blocks in use.", [(about(w), w.kv_cache_usage) for w in workers]),
        ):
            yield self.gauges(name, help_text, WORKER_LABELS, values)
        sizes = [((*about(w), str(w.block_size), str(w.num_blocks)), 1) for w in workers if w.num_blocks]
        labels = [*WORKER_LABELS, "block_size", "num_gpu_blocks"]
        yield self.gauges("cache_config_info", "Always 1; the KV cache is in the labels.", labels, sizes)

    def _worker_counters(self, workers: Sequence[WorkerGauges]) -> Iterator[Metric]:
        for name, help_text, count in WORKER_COUNTERS:
            yield self.counters(name, help_text, WORKER_LABELS, [(about(w), count(w)) for w in workers])
        yield self.counters(
            "spec_decode_num_accepted_tokens_per_pos",
            "Tokens guessed right, by their place in the draft, from 0.",
            [*WORKER_LABELS, "position"],
            [((*about(w), str(i)), count) for w in workers for i, count in enumerate(w.num_accepted_per_position)],
        )

    def _links(self, links: Sequence[LinkGauges]) -> Iterator[Metric]:
        for name, help_text, count in LINK_COUNTERS:
            yield self.counters(name, help_text, LINK_LABELS, [(ends(link), count(link)) for link in links])
        rates = [(ends(link), link.bytes_per_s) for link in links]
        yield self.gauges("kv_link_bytes_per_second", "Bandwidth of the latest transfers.", LINK_LABELS, rates)


def about(worker: WorkerGauges) -> tuple[str, str]:
    return worker.worker, worker.role


def ends(link: LinkGauges) -> tuple[str, str]:
    return link.prefill, link.decode
