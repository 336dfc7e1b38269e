"""Request bodies: read within a limit, and understood off the event loop when they are large."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from .errors import ApiError

T = TypeVar("T")
INLINE_BYTES = 4096
"""Bodies up to this size are parsed and tokenized where they arrive: about 2 ms, dearer than a thread from there on."""
BODY_TIMEOUT_S = 120.0
"""A client that sends less than its body in that time is not served: it could hold a connection for ever."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises ApiError: 413 as soon as the body is known to be larger, 408 if it takes too long to come."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large(max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _collect(request, max_bytes)
    except TimeoutError as error:
        raise ApiError(408, f"the body did not come within {BODY_TIMEOUT_S:g} s") from error


async def _collect(request: Request, max_bytes: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_bytes} bytes", code="request_too_large")


async def understand(raw: bytes, parse: Callable[[bytes], T]) -> T:
    """`parse(raw)`, in a thread when that could stall the streams of others. Raises ApiError."""
    try:
        if len(raw) <= INLINE_BYTES:
            return parse(raw)
        return await asyncio.to_thread(parse, raw)
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
