"""OpenAPI's description of answers: `responses` of a route, in one call.

What follows from a route's path and body, such as 401 and 413 and the shape of refusals, the page adds: openapi_page.
"""

from typing import Any

from .error_schemas import MEANINGS, OllamaError
from .schemas import Schema, schema_of

Responses = dict[int | str, dict[str, Any]]
EVENT_NAME = "The data's `type`, or Kobold's message; absent in OpenAI's chats and completions."
JSON, EVENTS, LINES, TEXT = "application/json", "text/event-stream", "application/x-ndjson", "text/plain"


def answers(kind: Any, *refusals: int, status: int = 200, media_type: str = JSON) -> Responses:
    """A route that answers with a `kind`: a struct, or a schema. `refusals`: statuses of its own."""
    schema = as_schema(kind)
    about = schema.get("description", "The answer.")
    return {status: {"description": about, "content": {media_type: {"schema": schema}}}, **refused(refusals)}


def generates(whole: Any, event: Any, *refusals: int, last: str | None = None) -> Responses:
    """A route that runs a generation: `whole` where it does not stream, else events whose data is an `event` each, but
    for the `last`. None: it never does the one or the other."""
    told = {} if whole is None else {JSON: {"schema": as_schema(whole)}}
    streamed = {} if event is None else {EVENTS: {"itemSchema": event_schema(event, last)}}
    about = as_schema(event if whole is None else whole).get("description", "The answer.")
    return {200: {"description": about, "content": {**told, **streamed}}, **refused((*refusals, 503, 504))}


def generates_lines(kind: Any) -> Responses:
    """A route that answers with a `kind`, or with a line of JSON for each part of it; the last may tell of an error."""
    content = {JSON: {"schema": as_schema(kind)}, LINES: {"itemSchema": either(kind, OllamaError)}}
    about = as_schema(kind).get("description", "The answer.")
    return {200: {"description": about, "content": content}, **refused((404, 503, 504))}


def event_schema(kind: Any, last: str | None) -> Schema:
    """Of one event of a stream, as OpenAPI 3.2 has it; before that, a keyword that nobody minds."""
    data: Schema = {"type": "string", "contentMediaType": JSON, "contentSchema": as_schema(kind)}
    about = "An object as JSON, on one line."
    if last is not None:
        data, about = {"anyOf": [data, {"const": last}]}, f"{about} At the end of a stream that did not fail: {last}."
    fields = {"data": {**data, "description": about}, "event": {"type": "string", "description": EVENT_NAME}}
    return {"type": "object", "properties": fields, "required": ["data"]}


def refuses_with(kind: Any) -> Responses:
    """What a route's refusals of a body say besides what all of its API say."""
    told = {"content": {JSON: {"schema": as_schema(kind)}}}
    return {status: {"description": MEANINGS[status], **told} for status in (400, 408, 413)}


def refused(statuses: tuple[int, ...]) -> Responses:
    return {status: {"description": MEANINGS[status]} for status in statuses}


def either(*kinds: Any) -> Schema:
    return {"anyOf": [as_schema(kind) for kind in kinds]}


def as_schema(kind: Any) -> Schema:
    return kind if isinstance(kind, dict) else schema_of(kind)
