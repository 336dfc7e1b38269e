"""docs/observability.md says of metrics what /metrics does."""

from pathlib import Path

from isthmus.router.access import Access
from isthmus.router.fake_core import FakeCore
from isthmus.router.key_metrics import KeyMetricsPage
from isthmus.router.metrics import Gauges, LinkGauges, Metrics
from isthmus.router.metrics_page import MetricsPage
from isthmus.router.page import Page
from isthmus.router.request_usage import RequestUsage, RequestUsagePage
from isthmus.tests.router.edge import ask, saying
from isthmus.tests.router.test_metrics import DECODE
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

DOC = Path(__file__).resolve().parents[2] / "docs" / "observability.md"
OWN = ("model_name", "le")
"""Labels that need no mention."""


def families() -> list[Metric]:
    """Of all pages there are, with something in each."""
    gauges = Gauges(1, 1, (DECODE,), (LinkGauges("p0", "d0", 1, 1, 1.0),))
    access = Access()
    access.enter({"type": "http", "path": "/v1/models", "headers": []})
    pages: list[Page] = [
        MetricsPage(Metrics(), lambda: gauges, model="m"),
        RequestUsagePage(RequestUsage(), model="m"),
        KeyMetricsPage(access),
    ]
    return [family for page in pages for family in page.collect()]


def row(family: Metric) -> str:
    name = family.name + ("_total" if family.type == "counter" else "")
    labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label not in OWN)
    return f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |"


def test_the_table_is_what_is_there() -> None:
    lines = DOC.read_text().splitlines()
    assert [line for line in lines if line.startswith("| `isthmus:")] == [row(family) for family in families()]


def test_these_are_all_pages_of_the_route() -> None:
    shown = ask(saying("x"), "GET", "/metrics").text
    known = {family.name for family in families()} | {
        family.name for family in text_string_to_metric_families(FakeCore().metrics().decode())
    }
    assert {family.name for family in text_string_to_metric_families(shown)} <= known
