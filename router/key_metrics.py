"""What /metrics shows of each API key, by its name."""

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric

from .access import Access
from .accounts import Account
from .page import DEFAULT_PREFIX, Page

COUNTERS: tuple[tuple[str, str, Callable[[Account], int]], ...] = (
    ("key_requests", "Requests.", lambda a: a.num_requests),
    ("key_prompt_tokens", "Tokens of prompts.", lambda a: a.num_prompt_tokens),
    ("key_generation_tokens", "Tokens generated.", lambda a: a.num_generation_tokens),
)
"""Name, help, and what one account has counted."""


class KeyMetricsPage(Page):
    """Renders the accounts."""

    def __init__(self, access: Access, *, prefix: str = DEFAULT_PREFIX):
        self._access = access
        super().__init__(prefix, {})

    def collect(self) -> Iterator[Metric]:
        accounts = list(self._access)
        for name, help_text, count in COUNTERS:
            yield self.counters(name, help_text, ["key"], [([a.name], count(a)) for a in accounts])
        running = [([a.name], a.num_running) for a in accounts]
        yield self.gauges("key_requests_running", "Requests that are being answered.", ["key"], running)
        refused = [([a.name, limit], count) for a in accounts for limit, count in a.num_refused.items()]
        yield self.counters("key_requests_refused", "Requests over a limit.", ["key", "limit"], refused)
        unauthorized = self._access.num_unauthorized
        yield self.counter("unauthorized_requests", "Requests without a key that is known.", unauthorized)
