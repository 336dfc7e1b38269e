"""The router's benchmark, as small as it runs; its tokens take more than a tick of the clock that counts CPU time."""

import json

import pytest
from isthmus.bench.fan_out import Flood, summary
from isthmus.bench.first_token import FirstToken, Sample, percentile
from isthmus.bench.first_token import summary as first_token_summary
from isthmus.bench.router_report import report
from isthmus.bench.router_run import Measured, Sizes, measure
from isthmus.tests.helpers import demo_model_path

SIZES = Sizes(streams=3, tokens=400, repetitions=1, requests=10, prompts=1, prompt_tokens=2000)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return measure(SIZES, str(demo_model_path()), quiet_s=0.1)


def test_all_was_measured(measured: Measured) -> None:
    for found in measured.saturated + measured.paced:
        assert found.tokens_per_s > 0
        assert found.cpu_s_per_1k > 0
    assert [found.events_per_token for found in measured.saturated[1:]] == [1.0, 1.0]
    assert 0 < measured.saturated[0].events_per_token <= 1
    for first in measured.first_token:
        assert 0 < first.p50_s <= first.p99_s
    ours, peer = measured.first_token
    assert peer.worker_p50_s == 0 < ours.worker_p50_s < ours.p50_s
    for windows in (measured.quiet, measured.text, measured.ids):
        for stalls in windows:
            assert 0 < stalls.median_gap_s <= stalls.worst_gap_s
            assert stalls.worst_ping_s > 0


def test_a_step_of_five_milliseconds_paces_both(measured: Measured) -> None:
    for found in measured.paced:
        assert found.tokens_per_s < SIZES.streams * SIZES.tokens / (0.005 * (SIZES.tokens - 1))


def test_the_report(measured: Measured) -> None:
    found = report(measured)
    text = found.markdown()
    assert "streamed tokens/s, 3 × 400, saturated" in text
    assert text.count("\n| ") == 1 + len(found.rows)
    assert "uvicorn " in text
    assert "load average" in text
    assert json.loads(json.dumps(found.as_dict()))["rows"][0]["what"] == found.rows[0].what


def test_summaries_are_medians() -> None:
    floods = [
        Flood(1000, events, 1.0 / rate, cpu, 0.5) for events, rate, cpu in ((900, 1, 3.0), (500, 3, 1.0), (100, 2, 2.0))
    ]
    found = summary(floods)
    assert found.tokens_per_s == 2000
    assert found.spread == (1000, 3000)
    assert found.events_per_token == 0.5
    assert found.cpu_s_per_1k == 2.0


def test_percentiles() -> None:
    assert first_token_summary([Sample(2.0, 1.0), Sample(1.0, 0.5), Sample(3.0, 0.1)]) == FirstToken(2.0, 3.0, 0.5)
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (50.0, 99.0, 7.0)
