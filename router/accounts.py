"""What each API key has used and uses now, and its limits."""

from starlette.types import Scope

from .api_keys import Limits
from .errors import ApiError
from .token_bucket import TokenBucket

_KEY = "isthmus.account"
CONCURRENT_RETRY_S = 1.0
"""When a client at its limit of requests at a time may ask again: nobody knows when one of them will end."""


class Account:
    """Of one key, by name; what it has counted outlives a change of its limits."""

    def __init__(self, name: str, limits: Limits, now: float):
        self.name = name
        self.num_requests = 0
        self.num_running = 0
        """Of those that are limited."""
        self.num_refused = {"rate": 0, "concurrency": 0}
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self._limits = Limits()
        self._bucket: TokenBucket | None = None
        self.limit(limits, now)

    def limit(self, limits: Limits, now: float) -> None:
        """A rate that stays the same leaves its bucket as full as it is."""
        rate = limits.max_requests_per_minute
        if rate != self._limits.max_requests_per_minute:
            self._bucket = TokenBucket(rate, rate / 60, now) if rate else None
        self._limits = limits

    def begin(self, now: float) -> None:
        """One more request is answered, until `end`. Raises ApiError (429) where that is too many."""
        self._check(now)
        self.num_running += 1

    def end(self) -> None:
        self.num_running -= 1

    def _check(self, now: float) -> None:
        most = self._limits.max_concurrent_requests
        if most and self.num_running >= most:
            self.num_refused["concurrency"] += 1
            raise too_many(f"{most} requests of this key are being answered, no more may be", CONCURRENT_RETRY_S)
        wait_s = self._bucket.take(now) if self._bucket else 0.0
        if wait_s:
            self.num_refused["rate"] += 1
            raise too_many(f"this key may send {self._limits.max_requests_per_minute} requests a minute", wait_s)


def too_many(message: str, retry_after_s: float) -> ApiError:
    return ApiError(429, message, code="rate_limit_exceeded", retry_after_s=retry_after_s)


def enter_account(scope: Scope, account: Account) -> None:
    scope[_KEY] = account


def account_name(scope: Scope) -> str:
    """Whose request it is; empty on routes that ask for no key."""
    account: Account | None = scope.get(_KEY)
    return account.name if account else ""


def count_tokens(scope: Scope, num_prompt: int, num_generation: int) -> None:
    """Puts them on the account of the request."""
    account: Account | None = scope.get(_KEY)
    if account:
        account.num_prompt_tokens += num_prompt
        account.num_generation_tokens += num_generation
