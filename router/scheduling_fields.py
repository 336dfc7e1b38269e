"""The fields that say how a request stands to others: vLLM's `priority` and `cache_salt`."""

from typing import Annotated

from msgspec import Meta, Struct


class SchedulingFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of every route that generates, or makes vectors."""

    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    """Requests with a lower number leave the router's queue first, those with the same in the order they came."""
    cache_salt: Annotated[str, Meta(max_length=4096)] = ""
    """A secret: the prompt shares its KV only with prompts of the same secret."""
