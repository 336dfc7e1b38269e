"""/openapi.json tells all there is to know of every route: what it takes, what it answers, how it refuses."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from isthmus.router.access import OPEN_FOLDERS, OPEN_PATHS, Access, is_limited
from isthmus.router.app import create_app
from isthmus.router.error_schemas import error_name
from isthmus.router.fake_core import FakeCore
from isthmus.router.logprob_fields import LOGPROBS
from isthmus.router.no_ops import NO_OPS, NOT_BUILT
from isthmus.tests.router.edge import served
from isthmus.tests.router.test_access import KEYS, ROUTES
from isthmus.wire.sampling_table import TABLE

JSON, EVENTS, LINES = "application/json", "text/event-stream", "application/x-ndjson"
INSIDE = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf", "contentSchema")
TYPED = {"type", "anyOf", "enum", "const", "$ref"}


@cache
def page(*, with_keys: bool = True) -> dict[str, Any]:
    return create_app(FakeCore(), served(), Access(KEYS if with_keys else ())).openapi()


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, one) for path, all in page()["paths"].items() for method, one in all.items()]


OPERATIONS = pytest.mark.parametrize(
    ("method", "path", "operation"), [pytest.param(*one, id=f"{one[0]} {one[1]}") for one in operations()]
)


def fields(schema: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All properties in a schema, those of its parts too, with their paths."""
    if isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from fields(part, f"{at}[{index}]")
    elif isinstance(schema, dict):
        for name, about in schema.get("properties", {}).items():
            yield f"{at}.{name}", about
            yield from fields(about, f"{at}.{name}")
        for key in ("items", "prefixItems", "anyOf", "additionalProperties"):
            yield from fields(schema.get(key), at)


def media_schemas(part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Of a request's body, or of one response, by media type."""
    for media_type, media in part.get("content", {}).items():
        yield media_type, media.get("itemSchema", media.get("schema"))


def reachable(schema: Any, at: str, within: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """All properties in a schema and in what it refers to, with their paths. `within`: references that lead here."""
    if isinstance(schema, list):
        for part in schema:
            yield from reachable(part, at, within)
    if not isinstance(schema, dict):
        return
    name = schema.get("$ref", "").rpartition("/")[2]
    if name and name not in within:
        yield from reachable(page()["components"]["schemas"][name], at, (*within, name))
    for field, about in schema.get("properties", {}).items():
        yield f"{at}.{field}", about
        yield from reachable(about, f"{at}.{field}", within)
    for key in INSIDE:
        yield from reachable(schema.get(key), at, within)


def body(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {"content": {JSON: {"schema": {}}}})["content"]
    assert list(content) == [JSON]
    schema: dict[str, Any] = content[JSON]["schema"]
    return schema


@OPERATIONS
def test_an_operation_says_what_it_is_for(method: str, path: str, operation: dict[str, Any]) -> None:
    assert operation["description"]
    assert len(operation["tags"]) == 1
    assert set(operation["tags"]) <= {tag["name"] for tag in page()["tags"] if tag["description"]}


@OPERATIONS
def test_every_field_of_a_body_has_a_description_and_a_type(method: str, path: str, operation: dict[str, Any]) -> None:
    found = dict(fields(body(operation)))
    assert [name for name, about in found.items() if not about.get("description")] == []
    untyped = [name for name, about in found.items() if not TYPED & about.keys()]
    assert [name for name in untyped if "does nothing" not in found[name]["description"]] == []


@OPERATIONS
def test_everything_that_is_sent_either_way_has_a_description(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    parts = {"body": operation.get("requestBody", {}), **operation["responses"]}
    schemas = [(f"{part} {kind}", one) for part, about in parts.items() for kind, one in media_schemas(about)]
    found = [field for at, schema in schemas for field in reachable(schema, at)]
    found += [(f"{one['in']} {one['name']}", one) for one in operation.get("parameters", ())]
    found += [(name, about) for name, about in page()["components"]["headers"].items()]
    assert [at for at, about in found if not about.get("description")] == []


def test_the_walk_sees_what_is_nested() -> None:
    """Through null, lists, maps, strings that hold JSON, and references."""
    told = page()["paths"]["/v1/chat/completions"]["post"]["responses"]
    seen = {
        at for status in ("200", "401") for _, schema in media_schemas(told[status]) for at, _ in reachable(schema, "")
    }
    assert seen >= {".choices.logprobs.content.top_logprobs.bytes", ".prompt_logprobs.rank", ".error.param"}
    assert seen >= {".data.choices.delta.content", ".data.error.param"}


@OPERATIONS
def test_answers_have_a_schema_and_refusals_the_shape_of_their_api(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    responses = {int(status): response for status, response in operation["responses"].items()}
    assert min(responses) in (200, 202)
    assert max(responses) < 500 or {*responses} >= {503}, "no 500 is promised"
    for status, response in responses.items():
        assert response["description"]
        for media_type, media in response["content"].items():
            assert media_type in (JSON, EVENTS, LINES, "text/plain")
            assert {*TYPED, "allOf"} & (
                media["itemSchema"] if media_type in (EVENTS, LINES) else media["schema"]
            ).keys()
        if status >= 400:
            schema = response["content"][JSON]["schema"]
            shape, *_ = schema.get("allOf", [schema])
            assert shape == {"$ref": f"#/components/schemas/{error_name(path)}"}


@OPERATIONS
def test_the_statuses_that_follow_from_path_and_body_are_there(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    statuses = {int(status) for status in operation["responses"]}
    if "requestBody" in operation:
        assert statuses >= {400, 408, 413}
    asks = not Access(KEYS).is_open(path)
    assert (401 in statuses) == asks == bool(operation.get("security"))
    assert (429 in statuses) == (asks and is_limited(method.upper(), path))
    assert not statuses & {405, 422, 500}
    events = any(EVENTS in response["content"] for response in operation["responses"].values())
    assert not events or statuses >= {503, 504}


def test_all_routes_but_pages_are_told_of() -> None:
    described = {(method.upper(), path) for method, path, _ in operations()}
    hidden = {path for method, path in ROUTES if (method, path) not in described} - OPEN_PATHS
    assert {path for path in hidden if not path.startswith(OPEN_FOLDERS)} == {
        "/v1/models/tiny", "/admin/workers/decode-0/drain",  # told of as patterns
        "/api", "/api/v1", "/api/latest",  # lead to the page of docs
    }  # fmt: skip


def test_keys_are_told_of_where_they_are_asked_for() -> None:
    schemes = page()["components"]["securitySchemes"]
    assert (schemes["Bearer"]["scheme"], schemes["X-API-Key"]["name"]) == ("bearer", "X-API-Key")
    assert page()["paths"]["/v1/models"]["get"]["security"] == [{"Bearer": []}, {"X-API-Key": []}]
    open_page = page(with_keys=False)["paths"]
    guarded = [path for path, all in open_page.items() for one in all.values() if "security" in one]
    assert guarded == ["/admin/keys/reload", "/admin/workers/{name}/drain"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
def test_types_and_bounds_are_those_of_the_tables(path: str) -> None:
    told = body(page()["paths"][path]["post"])["properties"]
    untold = {name for name in LOGPROBS if path == "/v1/messages"}
    assert [told[name]["enum"] for name in untold] == [[False, None]] * len(untold)
    for name, parameter in ((name, TABLE[name]) for name in TABLE.keys() - untold):
        about = told[name]["anyOf"][0] if "anyOf" in told[name] else told[name]
        bounds = [about.get(key) for key in ("minimum", "exclusiveMinimum", "maximum")]
        given = [parameter.minimum, parameter.exclusive_minimum, parameter.maximum]
        assert bounds == [None if bound is None else float(bound) for bound in given], name
        for alias in parameter.aliases:
            assert told[alias]["description"] == f"the same as {name}"
    assert NO_OPS.keys() | NOT_BUILT.keys() <= told.keys()
    assert told["suffix"]["enum"] == ["", None]


def test_null_is_as_good_as_nothing_but_where_a_field_must_be_there() -> None:
    told = body(page()["paths"]["/v1/chat/completions"]["post"])["properties"]
    assert told["top_k"]["type"] == ["integer", "null"]
    assert {"type": "null"} in told["stop"]["anyOf"]
    assert told["messages"]["type"] == "array"
