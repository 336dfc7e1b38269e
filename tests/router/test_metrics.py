from dataclasses import replace

from isthmus.router.histogram import Histogram
from isthmus.router.job import JobTimings
from isthmus.router.metrics import Gauges, LinkGauges, Metrics, WorkerGauges
from isthmus.router.metrics_page import MetricsPage
from prometheus_client.parser import text_string_to_metric_families

DECODE = WorkerGauges(
    worker="d0", role="decode", num_running=2, num_waiting=1, block_size=16, num_blocks=40, kv_cache_usage=0.25,
    prefix_cache_queries=100,
    prefix_cache_hits=60, num_transferred_bytes=5, transfer_s=0.5, num_expired_leases=3, num_drafts=10,
    num_draft_tokens=30, num_accepted_tokens=12, num_accepted_per_position=(7, 4, 1),
)  # fmt: skip


def page(metrics, workers=(), prefix="isthmus"):
    text = MetricsPage(metrics, lambda: Gauges(3, 4, tuple(workers)), model="m", prefix=prefix).render().decode()
    return {
        (s.name, *sorted(v for k, v in s.labels.items() if k != "model_name")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_histogram_counts_into_inclusive_buckets():
    histogram = Histogram((0.1, 1))
    for value, times in ((0.05, 1), (0.1, 2), (0.5, 1), (7, 3)):
        histogram.observe(value, times)
    family = histogram.family("isthmus:x", "help", {"model_name": "m"})
    counts = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert counts == {"0.1": 3, "1.0": 4, "+Inf": 7}
    assert histogram.count == 7
    assert abs(histogram.sum - 21.75) < 1e-9


def test_the_page_has_vllms_names():
    metrics = Metrics()
    metrics.count_prompt(7)
    metrics.ttft_s.observe(0.03)
    metrics.count_tokens(1, 0.03, first=True)
    metrics.count_tokens(2, 0.04, first=False)
    metrics.count_finished("stop", 3, 0.04)
    metrics.count_finished("stop", 1, 0.0)
    metrics.e2e_s.observe(0.07)
    metrics.observe_stages(JobTimings(0.01, 0.015, 0.005, 0.04, 0), transferred=True)
    metrics.observe_stages(JobTimings(0.01, 0.02, 0.0, 0.04, 0), transferred=False)
    found = page(metrics, [DECODE])
    assert found[("isthmus:num_requests_running",)] == 3
    assert found[("isthmus:num_requests_waiting",)] == 4
    assert found[("isthmus:prompt_tokens_total",)] == 7
    assert found[("isthmus:generation_tokens_total",)] == 3
    assert found[("isthmus:request_success_total", "stop")] == 2
    assert found[("isthmus:request_time_per_output_token_seconds_count",)] == 1, "one token has none after it"
    assert found[("isthmus:request_time_per_output_token_seconds_sum",)] == 0.02
    assert found[("isthmus:request_success_total", "abort")] == 0
    assert found[("isthmus:num_preemptions_total",)] == 0
    assert found[("isthmus:time_to_first_token_seconds_count",)] == 1
    assert found[("isthmus:inter_token_latency_seconds_count",)] == 2
    assert abs(found[("isthmus:inter_token_latency_seconds_sum",)] - 0.04) < 1e-9
    assert found[("isthmus:e2e_request_latency_seconds_count",)] == 1
    assert found[("isthmus:request_prefill_time_seconds_count",)] == 2
    assert found[("isthmus:request_transfer_time_seconds_count",)] == 1, "the other one needed no transfer"
    assert found[("isthmus:request_transfer_time_seconds_sum",)] == 0.005
    assert found[("isthmus:request_decode_time_seconds_sum",)] == 0.08
    assert abs(found[("isthmus:request_inference_time_seconds_sum",)] - 0.12) < 1e-9
    assert found[("isthmus:cache_config_info", "16", "40", "d0", "decode")] == 1
    assert found[("isthmus:kv_transfer_bytes_total", "d0", "decode")] == 5
    assert found[("isthmus:kv_transfer_seconds_total", "d0", "decode")] == 0.5
    assert found[("isthmus:kv_expired_leases_total", "d0", "decode")] == 3
    assert found[("isthmus:kv_cache_usage_perc", "d0", "decode")] == 0.25
    assert found[("isthmus:prefix_cache_queries_total", "d0", "decode")] == 100
    assert found[("isthmus:prefix_cache_hits_total", "d0", "decode")] == 60


def test_drafts_are_counted_for_each_worker_and_position():
    prefill = replace(
        DECODE, worker="p0", role="prefill", num_drafts=0, num_draft_tokens=0, num_accepted_tokens=0,
        num_accepted_per_position=(),
    )  # fmt: skip
    found = page(Metrics(), [DECODE, prefill], prefix="vllm")
    counted = {name: value for name, value in found.items() if name[0].startswith("vllm:spec_decode")}
    assert counted == {
        ("vllm:spec_decode_num_drafts_total", "d0", "decode"): 10,
        ("vllm:spec_decode_num_draft_tokens_total", "d0", "decode"): 30,
        ("vllm:spec_decode_num_accepted_tokens_total", "d0", "decode"): 12,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "0", "d0", "decode"): 7,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "1", "d0", "decode"): 4,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "2", "d0", "decode"): 1,
        ("vllm:spec_decode_num_drafts_total", "p0", "prefill"): 0,
        ("vllm:spec_decode_num_draft_tokens_total", "p0", "prefill"): 0,
        ("vllm:spec_decode_num_accepted_tokens_total", "p0", "prefill"): 0,
    }


def test_links_are_named_by_their_ends():
    link = LinkGauges("p0", "d0", num_transfers=2, num_bytes=300, bytes_per_s=1e6)
    text = MetricsPage(Metrics(), lambda: Gauges(0, 0, (), (link,)), model="m").render().decode()
    ends = '{decode="d0",model_name="m",prefill="p0"}'
    assert f"isthmus:kv_link_transfers_total{ends} 2.0" in text
    assert f"isthmus:kv_link_bytes_total{ends} 300.0" in text
    assert f"isthmus:kv_link_bytes_per_second{ends} 1e+06" in text


def test_another_prefix():
    assert ("vllm:num_requests_running",) in page(Metrics(), prefix="vllm")
