"""What a log line is about, for those who write it down."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that the running task or thread is for; empty for none."""
trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""Of its trace, in hexadecimal; empty where it has none."""


@contextmanager
def about(request: str) -> Iterator[None]:
    """What is logged meanwhile, here and in what is called, is about this request."""
    token = request_id.set(request)
    try:
        yield
    finally:
        request_id.reset(token)
