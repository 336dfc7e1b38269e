"""What /metrics shows of each API key, by its name."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .access import Access
from .accounts import Account

COUNTERS: tuple[tuple[str, str, Callable[[Account], int]], ...] = (
    ("key_requests", "Requests.", lambda a: a.num_requests),
    ("key_prompt_tokens", "Tokens of prompts.", lambda a: a.num_prompt_tokens),
    ("key_generation_tokens", "Tokens generated.", lambda a: a.num_generation_tokens),
)
"""Name, help, and what one account has counted."""


class KeyMetricsPage(Collector):
    """Renders the accounts as Prometheus text."""

    def __init__(self, access: Access, *, prefix: str = "isthmus"):
        self._access = access
        self._prefix = prefix
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for name, help_text, count in COUNTERS:
            family = CounterMetricFamily(self._name(name), help_text, labels=["key"])
            for account in self._access:
                family.add_metric([account.name], count(account))
            yield family
        yield self._running()
        yield self._refused()
        yield CounterMetricFamily(
            self._name("unauthorized_requests"), "Without a key that is known.", value=self._access.num_unauthorized
        )

    def _running(self) -> Metric:
        family = GaugeMetricFamily(self._name("key_requests_running"), "That are being answered.", labels=["key"])
        for account in self._access:
            family.add_metric([account.name], account.num_running)
        return family

    def _refused(self) -> Metric:
        family = CounterMetricFamily(self._name("key_requests_refused"), "Over a limit.", labels=["key", "limit"])
        for account in self._access:
            for limit, count in account.num_refused.items():
                family.add_metric([account.name, limit], count)
        return family

    def _name(self, name: str) -> str:
        return f"{self._prefix}:{name}"
