"""One request and its answer, from the outside: what is logged, counted and traced of it."""

import time
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..wire import log_context
from .accounts import account_name
from .errors import bad_field
from .request_id import HEADER, change_request_id, enter_request_id
from .text_stream import TextStream

_KEY = "isthmus.exchange"


class Exchange:
    """Filled in as the request is answered; complete when observers are told that it has ended."""

    def __init__(self, request_id: str, *, method: str, scheme: str, path: str, headers: Headers):
        self.request_id = request_id
        self.method = method
        self.scheme = scheme
        self.raw_path = path
        """As anybody may send it, line ends and all."""
        self.route = ""
        """The pattern that the path matches, if any."""
        self.headers = headers
        self.started_ns = time.time_ns()
        """Unix time, as all times of it; it goes on as the monotonic clock does."""
        self.ended_ns = 0
        self.status = 0
        """Of HTTP; 0 where the client was gone before there was one."""
        self.key = ""
        """Name of the API key; empty on routes that ask for none."""
        self.text: TextStream | None = None
        """What was generated, where the route generates."""
        self.stream = False
        self.submitted_ns = 0
        """When that was asked of the workers."""
        self.outcome = ""
        """Of it: finish reasons of all choices, or disconnected, aborted, error."""
        self._started = time.monotonic_ns()

    def generating(self, text: TextStream, *, stream: bool) -> None:
        self.text, self.stream, self.submitted_ns = text, stream, self._now_ns()

    def end(self) -> None:
        self.ended_ns = self._now_ns()

    def _now_ns(self) -> int:
        return self.started_ns + time.monotonic_ns() - self._started

    @property
    def path(self) -> str:
        """In printable ASCII, for logs and traces."""
        return quote(self.raw_path)

    @property
    def duration_s(self) -> float:
        return (self.ended_ns - self.started_ns) / 1e9


class Observer(Protocol):
    """Told of every exchange; must neither raise nor wait."""

    def began(self, exchange: Exchange) -> None:
        """Runs in the context of the request: what is set there is set for all that answers it."""

    def ended(self, exchange: Exchange) -> None: ...


def exchange_of(scope: Scope) -> Exchange:
    exchange: Exchange = scope[_KEY]
    return exchange


def rename(scope: Scope, request_id: str) -> None:
    """Gives the exchange the id that the request's body asks for. Raises ApiError if its header has asked for
    another."""
    exchange = exchange_of(scope)
    if request_id == exchange.request_id:
        return
    if exchange.headers.get(HEADER) == exchange.request_id:
        raise bad_field("request_id", "contradicts the header X-Request-Id")
    exchange.request_id = request_id
    change_request_id(scope, request_id)
    log_context.request_id.set(request_id)


class ExchangeMiddleware:
    """Gives each request its id, on its answer and its log lines, and tells observers of it."""

    def __init__(self, app: ASGIApp, observers: Iterable[Observer] = ()):
        self._app = app
        self._observers = tuple(observers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = enter_request_id(scope, headers)
        log_context.request_id.set(request_id)
        exchange = scope[_KEY] = Exchange(
            request_id,
            method=scope["method"],
            scheme=scope.get("scheme", "http"),
            path=scope["path"],
            headers=headers,
        )
        for observer in self._observers:
            observer.began(exchange)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = exchange.request_id
                exchange.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            exchange.status = exchange.status or 500  # that answer passes outside the middleware
            raise
        finally:
            self._end(exchange, scope)

    def _end(self, exchange: Exchange, scope: Scope) -> None:
        exchange.key = account_name(scope)
        exchange.route = getattr(scope.get("route"), "path", "")
        exchange.end()
        for observer in self._observers:
            observer.ended(exchange)
