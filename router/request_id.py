"""X-Request-Id: the client's or a new one, on every answer and on every log line of the request."""

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..wire import log_context

HEADER = "x-request-id"
MAX_LENGTH = 128
_KEY = "isthmus.request_id"


def request_id_of(scope: Scope) -> str:
    request_id: str = scope[_KEY]
    return request_id


def clean_request_id(given: str | None) -> str:
    """`given`, unless there is none or it does not belong in a log: longer than 128, or not printable ASCII."""
    if given and len(given) <= MAX_LENGTH and given.isascii() and given.isprintable():
        return given
    return secrets.token_hex(16)


class RequestIdMiddleware:
    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[_KEY] = clean_request_id(Headers(scope=scope).get(HEADER))
        log_context.request_id.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
