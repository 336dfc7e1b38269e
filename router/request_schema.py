"""OpenAPI's description of request bodies, from the structs and tables that validate them."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from ..wire.sampling import SamplingParams
from ..wire.sampling_table import HIDDEN, TABLE
from ..wire.sampling_values import OTHER_FORMS
from .no_ops import NO_OPS, NOT_BUILT, WHY, NoOp
from .sampling_fields import Shorthands
from .schemas import Schema, nullable, schema_of

UNTOLD: Schema = {"enum": [False], "description": "Not supported: this route's answers have no place for it."}


def body_schema(
    request: type[msgspec.Struct],
    aliases: Mapping[str, str],
    defaults: Mapping[str, Any],
    *,
    required: Collection[str] = (),
    untold: Collection[str] = (),
) -> dict[str, Any]:
    """`openapi_extra` for a route that takes `request`'s fields and those of `SamplingParams` in one object.
    `aliases`: the route's other names of fields; `defaults`: of its sampling parameters; `required`: those of them
    that it cannot do without; `untold`: those that ask for what its answers have no place for."""
    schema = schema_of(request)
    needed = {*schema.get("required", ()), *required}
    known = {**_sampling(defaults), **dict.fromkeys(untold, UNTOLD), **schema["properties"]}
    fields = {name: about if name in needed else nullable(about) for name, about in known.items()}
    properties = {**_ignored(), **_not_built(), **fields}
    for alias, name in (*_sampling_aliases(), *aliases.items()):
        properties[alias] = _alias_of(name, nullable(known[name]))
    properties = {name: about for name, about in properties.items() if name not in HIDDEN}
    return body_of({**schema, "properties": properties, "required": sorted(needed)})


def struct_schema(request: type[msgspec.Struct], *, optional: bool = False, nulls: bool = False) -> dict[str, Any]:
    """`openapi_extra` for a route whose body is `request` alone; `optional`: which may be left out; `nulls`: a field
    that may be left out may be null."""
    schema = schema_of(request)
    return body_of(_with_nulls(schema) if nulls else schema, optional=optional)


def _with_nulls(schema: Schema) -> Schema:
    needed = schema.get("required", ())
    properties = {name: about if name in needed else nullable(about) for name, about in schema["properties"].items()}
    return {**schema, "properties": properties}


def body_of(schema: Schema, *, optional: bool = False) -> dict[str, Any]:
    return {"requestBody": {"required": not optional, "content": {"application/json": {"schema": schema}}}}


def _sampling(defaults: Mapping[str, Any]) -> dict[str, Schema]:
    """Of fields that every route which generates has."""
    fields = {**schema_of(Shorthands)["properties"], **schema_of(SamplingParams)["properties"]}
    return {name: {**_any_form(name, schema), **_default(name, defaults)} for name, schema in fields.items()}


def _sampling_aliases() -> list[tuple[str, str]]:
    return [(alias, parameter.name) for parameter in TABLE.values() for alias in parameter.aliases]


def _ignored() -> dict[str, Schema]:
    return {name: _ignored_one(no_op) for name, no_op in NO_OPS.items()}


def _ignored_one(no_op: NoOp) -> Schema:
    return {**nullable(schema_of(no_op.kind)), "description": f"Accepted, and does nothing: {no_op.why}."}


def _not_built() -> dict[str, Schema]:
    """Fields that are known, with the values they may have."""
    return {name: _neutral_alone(name, values) for name, values in NOT_BUILT.items()}


def _neutral_alone(name: str, values: tuple[Any, ...]) -> Schema:
    why = f"Not supported: {WHY[name]}." if name in WHY else "Not supported yet."
    return {"enum": [*values, None], "description": f"{why} Accepted where it asks for nothing."}


def _any_form(name: str, schema: Schema) -> Schema:
    """`schema`, or one of the other forms that the field may have."""
    forms = OTHER_FORMS.get(name)
    if forms is None:
        return schema
    first = {key: value for key, value in schema.items() if key not in ("default", "description")}
    return {"description": TABLE[name].help, "default": schema.get("default"), "anyOf": [first, *forms]}


def _default(name: str, defaults: Mapping[str, Any]) -> Schema:
    return {"default": defaults[name]} if name in defaults else {}


def _alias_of(name: str, schema: Mapping[str, Any]) -> Schema:
    return {**{key: value for key, value in schema.items() if key != "default"}, "description": f"the same as {name}"}
