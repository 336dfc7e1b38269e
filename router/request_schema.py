"""OpenAPI's description of request bodies, from the structs that validate them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from ..wire.sampling import SamplingParams
from ..wire.sampling_table import HIDDEN, TABLE
from ..wire.sampling_values import OTHER_FORMS
from .field_help import field_help
from .sampling_fields import Shorthands


def body_schema(
    request: type[msgspec.Struct], aliases: Mapping[str, str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """`openapi_extra` for a route that takes `request`'s fields and those of `SamplingParams` in one object.
    `aliases`: the route's other names of fields; `defaults`: of its sampling parameters."""
    structs = (request, SamplingParams, Shorthands)
    _, parts = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")
    own, sampling, shorthands = (_inlined(parts[struct.__name__], parts)["properties"] for struct in structs)
    for name, schema in sampling.items():
        sampling[name] = {**_any_form(name, schema), **_default(name, defaults)}
    help, fields = field_help(request), {**shorthands, **sampling, **own}
    properties = {n: _described(schema, help.get(n, "")) for n, schema in fields.items() if n not in HIDDEN}
    for alias, name in aliases.items():
        properties[alias] = _alias_of(name, properties[name])
    for parameter in TABLE.values():
        properties |= {alias: _alias_of(parameter.name, sampling[parameter.name]) for alias in parameter.aliases}
    schema = {**_inlined(parts[request.__name__], parts), "properties": properties}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def struct_schema(request: type[msgspec.Struct]) -> dict[str, Any]:
    """`openapi_extra` for a route whose body is `request` alone."""
    _, parts = msgspec.json.schema_components((request,), ref_template="#/$defs/{name}")
    schema, help = _inlined(parts[request.__name__], parts), field_help(request)
    properties = {name: _described(field, help.get(name, "")) for name, field in schema["properties"].items()}
    content = {"application/json": {"schema": {**schema, "properties": properties}}}
    return {"requestBody": {"required": True, "content": content}}


def _any_form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, or one of the other forms that the field may have."""
    forms = OTHER_FORMS.get(name)
    if forms is None:
        return schema
    first = {key: value for key, value in schema.items() if key not in ("default", "description")}
    return {"description": TABLE[name].help, "default": schema.get("default"), "anyOf": [first, *forms]}


def _described(schema: dict[str, Any], help: str) -> dict[str, Any]:
    """With a description of its own: where a field may be null, it is inside."""
    inner = (form["description"] for form in schema.get("anyOf", ()) if "description" in form)
    return {**schema, "description": schema.get("description") or help or next(inner, "")}


def _default(name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {"default": defaults[name]} if name in defaults else {}


def _alias_of(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in schema.items() if key != "default"}, "description": f"the same as {name}"}


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """`schema` with its references replaced by what they name."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].removeprefix("#/$defs/")], parts)
    return {key: _inlined(value, parts) for key, value in schema.items()}
