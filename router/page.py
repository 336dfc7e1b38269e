"""A part of what /metrics shows: metric families with their names and labels filled in."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .histogram import Histogram

DEFAULT_PREFIX = "isthmus"
Row = tuple[Sequence[str], float]
"""Values of a family's own labels, and the number."""


class Page(Collector):
    """Renders families as Prometheus text. All have `labels`; their names begin with `prefix` and a colon."""

    def __init__(self, prefix: str, labels: Mapping[str, str]):
        self._prefix = prefix
        self._labels = dict(labels)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @abstractmethod
    def collect(self) -> Iterator[Metric]:
        """The families, with the numbers of now."""

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        return ()

    def counter(self, name: str, help_text: str, value: float) -> Metric:
        return self.counters(name, help_text, (), [((), value)])

    def counters(self, name: str, help_text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
        """One number for each combination of values of `labels`."""
        return self._filled(CounterMetricFamily(self._name(name), help_text, labels=self._with_own(labels)), rows)

    def gauge(self, name: str, help_text: str, value: float) -> Metric:
        return self.gauges(name, help_text, (), [((), value)])

    def gauges(self, name: str, help_text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
        return self._filled(GaugeMetricFamily(self._name(name), help_text, labels=self._with_own(labels)), rows)

    def histogram(self, name: str, help_text: str, histogram: Histogram) -> Metric:
        return histogram.family(self._name(name), help_text, self._labels)

    def _filled(self, family: CounterMetricFamily | GaugeMetricFamily, rows: Iterable[Row]) -> Metric:
        for values, number in rows:
            family.add_metric([*self._labels.values(), *values], number)
        return family

    def _with_own(self, labels: Sequence[str]) -> list[str]:
        return [*self._labels, *labels]

    def _name(self, name: str) -> str:
        return f"{self._prefix}:{name}"


def rows(counts: Iterable[tuple[str, float]]) -> list[Row]:
    """Of a family with one label."""
    return [([value], count) for value, count in counts]
