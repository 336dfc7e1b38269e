"""Keys and limits, before a request reaches any route: what is not known to be open is closed."""

import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from .access import Access, is_limited
from .errors import ApiError, error_response
from .request_id import request_id_of

log = logging.getLogger(__name__)


class AuthMiddleware:
    """OPTIONS asks for no key: browsers send it without one, before they ask for what needs it."""

    def __init__(self, app: ASGIApp, access: Access):
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or self._access.is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        limited = is_limited(scope["method"], scope["path"])
        try:
            account = self._access.enter(scope)
            if limited:
                account.begin(self._access.clock())
        except ApiError as error:
            log.info("%s: %d %r", request_id_of(scope), error.status, error.message)
            await error_response(scope["path"], error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if limited:
                account.end()
