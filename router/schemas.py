"""JSON schemas of structs, with the words that stand below their fields, and no references."""

from functools import cache
from typing import Any

import msgspec
from msgspec.inspect import Field, StructType, Type, type_info

from .field_help import field_help

Schema = dict[str, Any]


@cache
def schema_of(kind: Any) -> Schema:
    """Of a struct, or of any type that msgspec reads; it must not contain itself. Not to be changed."""
    [schema], parts = msgspec.json.schema_components((kind,), ref_template="{name}")
    for struct in structs_in(kind):
        help, properties = field_help(struct), parts[struct.__name__].get("properties", {})
        fields = dict(zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True))
        for name, field in properties.items():
            properties[name] = described(field, help.get(fields.get(name, "")) or kind_help(name, struct))
    inlined: Schema = _inlined(schema, parts)
    return inlined


def structs_in(kind: Any) -> list[type[msgspec.Struct]]:
    """`kind` itself, if it is one, and those its fields are made of."""
    found: dict[type[msgspec.Struct], None] = {}
    waiting: list[Any] = [type_info(kind)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, StructType):
            if node.cls in found:
                continue
            found[node.cls] = None
        if isinstance(node, tuple | list):
            waiting.extend(node)
        elif isinstance(node, Type | Field):
            waiting.extend(getattr(node, name) for name in node.__struct_fields__)
    return list(found)


def kind_help(name: str, struct: type[msgspec.Struct]) -> str:
    """Of a tag, and of OpenAI's field for one."""
    return "Which kind of object this is." if name in (struct.__struct_config__.tag_field, "object") else ""


def typed(schema: Schema) -> Schema:
    """msgspec names no type beside an enumeration."""
    names = schema.get("enum")
    is_enum = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return {"type": "string", **schema} if is_enum else schema


def described(schema: Schema, help: str) -> Schema:
    """With a description of its own: where a field may be null, it is inside."""
    inner = (form["description"] for form in schema.get("anyOf", ()) if "description" in form)
    text = schema.get("description") or help or next(inner, "")
    return {**schema, "description": text} if text else schema


def nullable(schema: Schema) -> Schema:
    """Where null is as good as nothing."""
    if "anyOf" in schema:
        forms = schema["anyOf"]
        return schema if {"type": "null"} in forms else {**schema, "anyOf": [*forms, {"type": "null"}]}
    if "enum" in schema:
        kinds = {"type": [schema["type"], "null"]} if "type" in schema else {}
        return {**schema, **kinds, "enum": [*(value for value in schema["enum"] if value is not None), None]}
    is_other = isinstance(schema.get("type"), str) and schema["type"] != "null"
    return {**schema, "type": [schema["type"], "null"]} if is_other else schema


def _inlined(schema: Any, parts: Schema) -> Any:
    """`schema` with its references replaced by what they name."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_inlined(parts[schema["$ref"]], parts), **beside}
    return typed({key: _inlined(value, parts) for key, value in schema.items() if key != "discriminator"})
