"""The fields that say what an output must match, by the names of several servers' clients.

vLLM and Aphrodite: guided_json, guided_regex, guided_grammar, guided_choice; newer ones: structured_outputs. KoboldCpp
and llama.cpp: grammar (GBNF), json_schema; tabbyAPI: grammar_string. OpenAI: response_format. One at a time.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ..text.grammar import GrammarError, check_whitespace, grammar_kind, json_object
from ..text.structural_tag import StructuralTag
from ..wire.sampling import Guidance
from .errors import bad_field
from .fields import Fields
from .scheduling_fields import SchedulingFields


class NamedSchema(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """OpenAI's."""

    schema: dict[str, Any] | None = None
    """The JSON schema."""
    name: str | None = None
    """Of the schema; not shown to the model."""
    description: str | None = None
    """Of the schema; not shown to the model."""
    strict: bool | None = None
    """Nothing to switch: the schema always holds."""


class ResponseFormat(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    """What the text is: anything, JSON, JSON that a schema describes, or text with constrained passages."""
    json_schema: NamedSchema | None = None
    """Of json_schema: the schema, in an object."""
    schema: dict[str, Any] | None = None
    """llama.cpp's place for it, also beside json_object."""
    structures: list[dict[str, Any]] | None = None
    """Of structural_tag: the passages, each with begin, schema and end."""
    triggers: list[str] | None = None
    """Of structural_tag: texts that passages begin with."""


class StructuredOutputs(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    json: str | dict[str, Any] | None = None
    """A JSON schema."""
    regex: str | None = None
    """A regular expression for the whole output."""
    choice: list[str] | None = None
    """The output is one of these."""
    grammar: str | None = None
    """Lark, or GBNF."""
    json_object: bool | None = None
    """The output is any JSON object."""
    structural_tag: str | dict[str, Any] | None = None
    """Free text with constrained passages: `structures` and `triggers`."""
    whitespace_pattern: str | None = None
    """A regular expression for what may stand between the tokens of JSON."""
    disable_any_whitespace: bool | None = None
    """Nothing may."""
    disable_additional_properties: bool | None = None
    """Nothing to switch off: unless a schema says otherwise, other properties are JSON's own rule."""
    disable_fallback: bool | None = None
    """Nothing to switch off: there is no other implementation."""


class GuidanceFields(SchedulingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of every route that generates."""

    guided_json: str | dict[str, Any] | None = None
    """A JSON schema: the output is JSON that it describes. Empty, as clients send it by default, asks for nothing."""
    guided_regex: str | None = None
    """The whole output matches this regular expression."""
    guided_grammar: str | None = None
    """Lark, or GBNF."""
    guided_choice: list[str] | None = None
    """The output is one of these."""
    guided_whitespace_pattern: str | None = None
    """A regular expression for what may stand between the tokens of JSON, which another field asks for."""
    grammar: str | None = None
    """GBNF, Lark, or a JSON schema as text."""
    grammar_retain_state: bool = False
    """Not built: go on in the grammar where the last generation ended."""
    response_format: ResponseFormat | None = None
    """OpenAI's way to ask for JSON, or for JSON that a schema describes."""
    structural_tag: str | dict[str, Any] | None = None
    """Free text with constrained passages: `structures`, each with begin, schema and end, and `triggers`."""
    structured_outputs: StructuredOutputs | None = None
    """One of json, regex, choice, grammar, json_object and structural_tag, as vLLM groups them."""


ALIASES = {"grammar_string": "grammar", "json_schema": "guided_json"}
"""Other clients' names."""


def put_guidance(request: GuidanceFields, fields: Fields) -> None:
    """Makes `guidance` a field of sampling, if the request has any. Raises ApiError (400) for what can be told without
    compiling it."""
    found = list(_readings(request, fields))
    _check_whitespace(request, [fields.sent(name) for name in ("guided_json", "response_format")], found)
    for (first, guidance), (second, other) in pairwise(found):
        if other != guidance:
            raise bad_field(second, f"cannot be combined with {first}: an output matches one of them only")
    if request.grammar_retain_state and found:
        raise bad_field("grammar_retain_state", "not supported yet; leave it out or send false")
    if found:
        fields.sent_as["guidance"], fields.sampling["guidance"] = found[0]


def _check_whitespace(request: GuidanceFields, users: Sequence[str], found: Sequence[tuple[str, Guidance]]) -> None:
    """Raises ApiError (400) for a pattern that no JSON is asked for beside; `users`: fields that can ask for it."""
    is_used = any(sent in users and guidance.kind == "json_schema" for sent, guidance in found)
    if request.guided_whitespace_pattern and not is_used:
        raise bad_field("guided_whitespace_pattern", "needs guided_json, or a response_format of JSON")


def _readings(request: GuidanceFields, fields: Fields) -> Iterator[tuple[str, Guidance]]:
    _checked("guided_whitespace_pattern", read_whitespace, request.guided_whitespace_pattern, request)
    for name, read in READERS.items():
        sent = fields.sent(name)
        value = getattr(request, name)
        guidance = None if value in (None, "", [], {}) else _checked(sent, read, value, request)
        if guidance is not None:
            yield sent, guidance


Reader = Callable[[Any, GuidanceFields], Guidance | None]


def _checked(sent: str, read: Reader, value: Any, request: GuidanceFields) -> Guidance | None:
    try:
        return read(value, request)
    except GrammarError as error:
        raise bad_field(sent, str(error)) from None


def read_whitespace(pattern: str | None, _: GuidanceFields) -> None:
    check_whitespace(pattern or "")


def of_json(value: str | dict[str, Any], whitespace: str | None) -> Guidance:
    schema = json_object(value) if isinstance(value, str) else value
    if whitespace is not None:
        schema = {**schema, "x-guidance": {**schema.get("x-guidance", {}), "whitespace_pattern": whitespace}}
    return Guidance("json_schema", json.dumps(schema))


def of_grammar(text: str) -> Guidance:
    return Guidance(grammar_kind(text), text)


def of_kobold_grammar(text: str, request: GuidanceFields) -> Guidance:
    """Neither of the two languages begins with a brace."""
    return of_json(text, request.guided_whitespace_pattern) if text.lstrip().startswith("{") else of_grammar(text)


def of_choice(choices: list[str]) -> Guidance:
    return Guidance("choice", json.dumps(choices))


def of_structural_tag(value: str | dict[str, Any]) -> Guidance:
    tag = json_object(value) if isinstance(value, str) else value
    if "format" in tag:
        raise GrammarError("the newer form, with `format`, is not supported; send structures and triggers")
    try:
        return Guidance("structural_tag", msgspec.json.encode(msgspec.convert(tag, StructuralTag)).decode())
    except msgspec.ValidationError as error:
        raise GrammarError(str(error)) from None


def of_response_format(value: ResponseFormat, request: GuidanceFields) -> Guidance | None:
    named = None if value.json_schema is None else value.json_schema.schema
    schema = value.schema if named is None else named
    match value.type:
        case "text":
            return None
        case "structural_tag":
            return of_structural_tag({"structures": value.structures or [], "triggers": value.triggers or []})
        case "json_schema" if schema is None:
            raise GrammarError("has no json_schema.schema")
    return of_json({"type": "object"} if schema is None else schema, request.guided_whitespace_pattern)


def of_structured_outputs(value: StructuredOutputs, request: GuidanceFields) -> Guidance | None:
    given = [name for name in OUTPUT_KINDS if getattr(value, name) not in (None, False)]
    if len(given) > 1:
        raise GrammarError(f"{given[1]} cannot be combined with {given[0]}: an output matches one of them only")
    if not given:
        return None
    whitespace = "" if value.disable_any_whitespace else value.whitespace_pattern
    if whitespace and given[0] not in ("json", "json_object"):
        raise GrammarError(f"whitespace_pattern is of JSON, not of a {given[0]}")
    try:
        check_whitespace(whitespace or "")
    except GrammarError as error:
        raise GrammarError(f"whitespace_pattern {error}") from None
    return OUTPUT_KINDS[given[0]](getattr(value, given[0]), whitespace)


OUTPUT_KINDS: dict[str, Callable[[Any, str | None], Guidance]] = {
    "json": of_json,
    "json_object": lambda _, whitespace: of_json({"type": "object"}, whitespace),
    "regex": lambda value, _: Guidance("regex", value),
    "choice": lambda value, _: of_choice(value),
    "grammar": lambda value, _: of_grammar(value),
    "structural_tag": lambda value, _: of_structural_tag(value),
}
READERS: dict[str, Reader] = {
    "guided_json": lambda value, request: of_json(value, request.guided_whitespace_pattern),
    "guided_regex": lambda value, _: Guidance("regex", value),
    "guided_grammar": lambda value, _: of_grammar(value),
    "guided_choice": lambda value, _: of_choice(value),
    "grammar": of_kobold_grammar,
    "response_format": of_response_format,
    "structural_tag": lambda value, _: of_structural_tag(value),
    "structured_outputs": of_structured_outputs,
}
