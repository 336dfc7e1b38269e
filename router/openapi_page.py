"""/openapi.json: what routes say of themselves, with what follows from their paths."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from fastapi import FastAPI

from .access import ADMIN_FOLDER, Access, is_limited
from .error_schemas import MEANINGS, error_name, error_schemas

Operation = dict[str, Any]
TAGS = {
    "OpenAI": "OpenAI's API, with the extensions of vLLM and Aphrodite.",
    "Anthropic": "Anthropic's messages.",
    "Kobold": "KoboldAI's API, as KoboldCpp has it.",
    "Ollama": "Ollama's API, as far as KoboldCpp has it too.",
    "status": "What runs at this moment, as the page at /ui shows it.",
    "service": "Health, version and metrics.",
    "admin": "For whoever runs the server. An admin key is needed.",
}
SCHEMES = {
    "Bearer": {"type": "http", "scheme": "bearer", "description": "An API key, after Authorization: Bearer."},
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key by itself."},
}
HEADERS = {
    "X-Request-Id": {"schema": {"type": "string"}, "description": "The request's own, or one made for it."},
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds, where it is known how many."},
    "WWW-Authenticate": {"schema": {"type": "string"}, "description": "Bearer."},
}
HEADERS_OF = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
"""Besides X-Request-Id, which every answer has."""


def complete_page(app: FastAPI, access: Access) -> None:
    plain = app.openapi

    @cache
    def page() -> dict[str, Any]:
        return completed(plain(), access)

    app.openapi = page  # type: ignore[method-assign]


def completed(page: dict[str, Any], access: Access) -> dict[str, Any]:
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            complete(operation, path, method.upper(), access)
    schemes = {"securitySchemes": SCHEMES} if needs_schemes(page) else {}
    page["components"] = {"schemas": error_schemas(), "headers": HEADERS, **schemes}
    page["tags"] = [{"name": name, "description": about} for name, about in TAGS.items()]
    return page


def needs_schemes(page: dict[str, Any]) -> bool:
    return any("security" in one for operations in page["paths"].values() for one in operations.values())


def complete(operation: Operation, path: str, method: str, access: Access) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's, for parameters that are no strings: ours are
    for status in refusals(operation, path, method, access):
        responses.setdefault(str(status), {"description": MEANINGS[status]})
    for status, response in responses.items():
        complete_response(response, int(status), path)
    operation["responses"] = dict(sorted(responses.items()))
    if access.asks_for_key(path):
        operation["security"] = [{name: []} for name in SCHEMES]


def refusals(operation: Operation, path: str, method: str, access: Access) -> Iterator[int]:
    """Statuses that follow from the path and from having a body."""
    if "requestBody" in operation:
        yield from (400, 408, 413)
    if access.asks_for_key(path):
        yield 401
    if path.startswith(ADMIN_FOLDER):
        yield 403
    if not access.is_open(path) and is_limited(method, path):
        yield 429


def complete_response(response: dict[str, Any], status: int, path: str) -> None:
    if status >= 400:
        schema: dict[str, Any] = {"$ref": f"#/components/schemas/{error_name(path)}"}
        if more := response.get("content"):
            schema = {"allOf": [schema, more["application/json"]["schema"]]}
        response["content"] = {"application/json": {"schema": schema}}
    names = ("X-Request-Id", *HEADERS_OF.get(status, ()))
    response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
