"""The Grafana dashboard: its form, and each of its queries against a real Prometheus fed by our metrics."""

import itertools
import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from isthmus.router.job import Job, JobTimings
from isthmus.router.metrics import Gauges, LinkGauges, Metrics, WorkerGauges
from isthmus.router.metrics_page import MetricsPage
from isthmus.router.request_usage import RequestUsage, RequestUsagePage
from isthmus.router.text_stream import Generation, TextOptions
from isthmus.tests.deploy.containers import ROOT
from isthmus.tests.deploy.prometheus import PROMETHEUS, Prometheus, scraping
from isthmus.wire.sampling import Guidance, SamplingParams

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "isthmus.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {f"{p['title']}, {t['refId']}": t["expr"] for p in PANELS for t in p["targets"]}
VARIABLES = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
VALUES = {"${prefix}": "isthmus", "$__rate_interval": "2s", "$model": ".*", "$worker": ".*"}

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
SOURCE = {"type": "object", "required": ["type", "uid"], "properties": {"type": {"const": "prometheus"}}}
GRID = {
    "type": "object",
    "required": ["h", "w", "x", "y"],
    "properties": {"h": COUNT, "w": {"type": "integer", "minimum": 1, "maximum": 24}, "x": COUNT, "y": COUNT},
    "additionalProperties": False,
}
TARGET = {
    "type": "object",
    "required": ["refId", "expr", "datasource", "legendFormat"],
    "properties": {"refId": {"pattern": "^[A-Z]$"}, "expr": TEXT, "legendFormat": TEXT, "datasource": SOURCE},
}
PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "gridPos"],
    "properties": {"id": {"type": "integer", "minimum": 1}, "title": TEXT, "gridPos": GRID, "description": TEXT},
    "if": {"properties": {"type": {"const": "timeseries"}}},
    "then": {
        "required": ["datasource", "description", "fieldConfig", "options", "targets"],
        "properties": {
            "datasource": SOURCE,
            "targets": {"type": "array", "minItems": 1, "items": TARGET},
            "fieldConfig": {"type": "object", "required": ["defaults", "overrides"]},
        },
    },
    "else": {"properties": {"type": {"const": "row"}, "panels": {"maxItems": 0}}, "required": ["collapsed"]},
}
VARIABLE = {
    "type": "object",
    "required": ["name", "type", "query"],
    "properties": {"type": {"enum": ["datasource", "query", "textbox"]}},
}
SCHEMA = {
    "type": "object",
    "required": ["title", "uid", "schemaVersion", "panels", "templating", "time", "annotations"],
    "properties": {
        "title": TEXT,
        "uid": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$"},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "time": {"type": "object", "required": ["from", "to"]},
        "panels": {"type": "array", "minItems": 1, "items": PANEL},
        "templating": {"properties": {"list": {"type": "array", "items": VARIABLE}}, "required": ["list"]},
    },
    "not": {"required": ["id"]},
}
"""Of what this dashboard uses of Grafana's dashboard model."""


PARAMS = SamplingParams(min_p=0.1, guidance=Guidance("regex", "a+"), max_tokens=100)
ASKED = Generation((Job("r", 0, (1, 2), 1, PARAMS, ()),), TextOptions(stops=("x",)))


class BusyRouter:
    """Metrics of a router that gets more to do with every look at them."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self._usage = RequestUsage()
        self._pages = (
            MetricsPage(self._metrics, self._gauges, model="m"),
            RequestUsagePage(self._usage, model="m"),
        )
        self._looks = 0

    def render(self) -> bytes:
        self._looks += 1
        metrics = self._metrics
        metrics.num_preemptions += 1
        metrics.num_workers_lost += 1
        metrics.count_prompt(100)
        metrics.ttft_s.observe(0.1)
        metrics.e2e_s.observe(1.1)
        metrics.count_tokens(1, 0.1, first=True)
        metrics.count_tokens(20, 1.0, first=False)
        metrics.count_finished("stop", 21, 1.0)
        metrics.num_placements["prefill-decode"] += 1
        metrics.longest_generation_tokens.observe(21)
        metrics.observe_stages(JobTimings(0.01, 0.07, 0.02, 1.0, 0), transferred=True)
        self._usage.count(ASKED, stream=True)
        return b"".join([page.render() for page in self._pages])

    def _gauges(self) -> Gauges:
        link = LinkGauges("p0", "d0", self._looks, 1000 * self._looks, 1e5)
        return Gauges(3, 1, (self._worker("p0", "prefill"), self._worker("d0", "decode")), (link,))

    def _worker(self, name: str, role: str) -> WorkerGauges:
        looks = self._looks
        return WorkerGauges(
            worker=name, role=role, num_running=2, num_waiting=1, block_size=16, num_blocks=8, kv_cache_usage=0.25,
            prefix_cache_queries=100 * looks,
            prefix_cache_hits=40 * looks, num_transferred_bytes=1000 * looks, transfer_s=0.01 * looks,
            num_expired_leases=looks, num_drafts=looks, num_draft_tokens=4 * looks, num_accepted_tokens=2 * looks,
            num_accepted_per_position=(looks, looks),
        )  # fmt: skip


def filled_in(expression: str) -> str:
    for name, value in VALUES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, "every variable has a value here"
    return expression


def test_its_form() -> None:
    jsonschema.validate(DASHBOARD, SCHEMA)


def test_panels_stand_side_by_side() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    boxes = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for a, b in itertools.combinations(boxes, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_no_query_asks_for_a_metric_that_is_not_there() -> None:
    page = BusyRouter().render().decode()
    ours = set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))
    families = {re.sub(r"_(total|created)$", "", name) for name in ours}
    asked = {
        re.sub(r"_(total|bucket|sum|count)$", "", name)
        for query in QUERIES.values()
        for name in re.findall(r"isthmus:\w+", filled_in(query))
    }
    assert len(asked) > 20
    assert asked <= families


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With a few scrapes behind it."""
    if PROMETHEUS is None:
        pytest.skip("needs Prometheus")
    with scraping(BusyRouter().render, tmp_path_factory.mktemp("prometheus")) as started:
        deadline = time.monotonic() + 20
        enough = "count_over_time(isthmus:num_requests_running[1m]) >= 5"
        while not started.query(enough):
            assert time.monotonic() < deadline, "nothing was scraped"
            time.sleep(0.05)
        yield started


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_finds_numbers(prometheus: Prometheus, name: str) -> None:
    found = prometheus.query(filled_in(QUERIES[name]))
    assert found
    assert all(math.isfinite(float(sample["value"][1])) for sample in found)


def test_legends_name_labels_that_are_there(prometheus: Prometheus) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert all(labels <= sample["metric"].keys() for sample in prometheus.query(filled_in(target["expr"])))


@pytest.mark.parametrize(("variable", "values"), [("model", ["m"]), ("worker", ["d0", "p0"])])
def test_variables_find_their_values(prometheus: Prometheus, variable: str, values: list[str]) -> None:
    metric, label = re.fullmatch(r"label_values\((\S+), (\w+)\)", VARIABLES[variable]["query"]["query"]).groups()
    assert prometheus.label_values(filled_in(metric), label) == values
    assert {name.strip("${}") for name in VALUES} - {"__rate_interval"} <= VARIABLES.keys()


def test_some_queries_give_what_the_router_does(prometheus: Prometheus) -> None:
    def value(panel: str) -> float:
        return float(prometheus.query(filled_in(QUERIES[panel]))[0]["value"][1])

    assert value("Prefix cache hits, A") == pytest.approx(0.4)
    assert value("KV bandwidth while moving, A") == pytest.approx(1e5)
    assert value("Where time to first token goes, B") == pytest.approx(0.07)
    assert value("Guesses that were right, A") == pytest.approx(0.5)
    assert 0.08 < value("Time to first token, A") <= 0.1
