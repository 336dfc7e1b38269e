"""Whether a tool's parameters are a JSON schema: the mistakes that clients make, named by their place."""

from typing import Any

from .errors import bad_field

TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
OBJECTS = ("properties", "patternProperties", "$defs", "definitions")


def check_schema(schema: Any, at: str) -> None:
    """Raises ApiError (400) naming the part at fault. `at`: the place of `schema` in the body."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise bad_field(at, "must be a JSON schema, an object")
    check_type(schema.get("type", "object"), f"{at}.type")
    check_strings(schema.get("required", []), f"{at}.required")
    if not isinstance(schema.get("enum", []), list):
        raise bad_field(f"{at}.enum", "must be a list of values")
    for name in SCHEMAS:
        if name in schema and not isinstance(schema[name], list):
            check_schema(schema[name], f"{at}.{name}")
    for name in LISTS:
        parts = schema.get(name, [])
        if not isinstance(parts, list):
            raise bad_field(f"{at}.{name}", "must be a list of JSON schemas")
        for index, part in enumerate(parts):
            check_schema(part, f"{at}.{name}[{index}]")
    for name in OBJECTS:
        members = schema.get(name, {})
        if not isinstance(members, dict):
            raise bad_field(f"{at}.{name}", "must be an object of JSON schemas")
        for key, part in members.items():
            check_schema(part, f"{at}.{name}.{key}")


def check_type(value: Any, at: str) -> None:
    for each in value if isinstance(value, list) else [value]:
        if each not in TYPES:
            raise bad_field(at, f"{each!r} is no type of JSON: one of {', '.join(TYPES)}")


def check_strings(value: Any, at: str) -> None:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise bad_field(at, "must be a list of strings")
