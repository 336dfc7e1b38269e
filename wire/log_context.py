"""What a log line is about, for those who write it down."""

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that the running task or thread is for; empty for none."""
