"""X-Request-Id: the client's or a new one, on every answer and on every log line of the request."""

import secrets
from typing import Annotated

from msgspec import Meta
from starlette.datastructures import Headers
from starlette.types import Scope

HEADER = "x-request-id"
MAX_LENGTH = 128
_KEY = "isthmus.request_id"
RequestId = Annotated[str, Meta(min_length=1, max_length=MAX_LENGTH, pattern=r"^[ -~]*$(?!\n)")]
"""As `clean_request_id` takes it."""


def enter_request_id(scope: Scope, headers: Headers) -> str:
    """Decides which it is."""
    request_id = scope[_KEY] = clean_request_id(headers.get(HEADER))
    return request_id


def change_request_id(scope: Scope, request_id: str) -> None:
    scope[_KEY] = request_id


def request_id_of(scope: Scope) -> str:
    request_id: str = scope[_KEY]
    return request_id


def clean_request_id(given: str | None) -> str:
    """`given`, unless there is none or it does not belong in a log: longer than 128, or not printable ASCII."""
    if given and len(given) <= MAX_LENGTH and given.isascii() and given.isprintable():
        return given
    return secrets.token_hex(16)
