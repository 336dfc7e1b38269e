"""Server-sent events that are named after their type, as /v1/responses and /v1/messages send them."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec


def events(each: Iterable[Mapping[str, Any]]) -> bytes:
    """Written one by one: what an event tells of may change before the next."""
    return b"".join([b"event: %b\ndata: %b\n\n" % (one["type"].encode(), msgspec.json.encode(one)) for one in each])
