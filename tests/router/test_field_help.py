"""Every field of a body is described, from the strings in its struct or from the table."""

import msgspec
import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.field_help import field_help
from isthmus.tests.router.edge import ask

PATHS = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/v1/generate",
    "/api/extra/generate/stream",
]
POOLING_PATHS = ["/v1/embeddings", "/api/extra/embeddings", "/v1/score", "/v2/rerank"]


class Parent(msgspec.Struct):
    plain: int = 1
    told: int = 2
    """What the parent
    says."""
    again: int = 3
    """Before."""


class Child(Parent):
    """Not of any field."""

    again: int = 4
    """After."""

    @property
    def twice(self) -> int:
        """Not a field."""
        return 2 * self.plain


def test_the_string_after_a_field_is_its_help() -> None:
    assert field_help(Child) == {"told": "What the parent says.", "again": "After."}


@pytest.mark.parametrize("path", [*PATHS, *POOLING_PATHS])
def test_no_field_of_a_body_is_without_a_description(path: str) -> None:
    schema = ask(FakeCore(), "GET", "/openapi.json").json()
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert [name for name, about in body["properties"].items() if not about.get("description")] == []
    if "completions" in path:
        assert body["properties"]["prompt_logprobs"]["description"] != body["properties"]["logprobs"]["description"]
