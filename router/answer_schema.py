"""OpenAPI's description of answers: `responses` of a route, in one call.

What follows from a route's path and body, such as 401 and 413 and the shape of refusals, the page adds: openapi_page.
"""

from collections.abc import Mapping
from typing import Any

from .error_schemas import MEANINGS
from .schemas import Schema, schema_of

Responses = dict[int | str, dict[str, Any]]
JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"


def answers(kind: Any, *refusals: int, status: int = 200, media_type: str = JSON) -> Responses:
    """A route that answers with a `kind`: a struct, or a schema. `refusals`: statuses of its own."""
    return {status: content_of({media_type: kind}), **refused(refusals)}


def generates(whole: Any, event: Any, *refusals: int) -> Responses:
    """A route that runs a generation: `whole` where it does not stream, else events whose data is an `event` each.
    None: it never does the one or the other."""
    kinds = {media_type: kind for media_type, kind in ((JSON, whole), (EVENTS, event)) if kind is not None}
    return {200: content_of(kinds), **refused((*refusals, 503, 504))}


def content_of(kinds: Mapping[str, Any]) -> dict[str, Any]:
    content = {media_type: {"schema": as_schema(kind)} for media_type, kind in kinds.items()}
    told = (media["schema"].get("description") for media in content.values())
    return {"description": next(filter(None, told), "The answer."), "content": content}


def refused(statuses: tuple[int, ...]) -> Responses:
    return {status: {"description": MEANINGS[status]} for status in statuses}


def as_schema(kind: Any) -> Schema:
    return kind if isinstance(kind, dict) else schema_of(kind)


def schema_like(value: Any) -> Schema:
    """Of an answer that never changes: the types of what is in it."""
    match value:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array", "items": schema_like(value[0]) if value else {}}
        case dict():
            properties = {name: schema_like(inner) for name, inner in value.items()}
            return {"type": "object", "properties": properties, "required": list(value)}
    raise TypeError(f"{value!r} is not JSON")
