"""A JSON schema as llama.cpp's GBNF, for clients that send grammars: the part of JSON Schema that such rules can say.

Every text of the grammar is JSON that the schema describes; not the other way round. An object with `properties` has
these alone, in their order, and `oneOf` is read as `anyOf`. What cannot be said is refused, never left out.
"""

import json
import re
from collections.abc import Mapping, Sequence, Set
from itertools import chain, count
from typing import Any

Schema = Mapping[str, Any]

SPACE = r'| " " | "\n" [ \t]{0,20}'
CHAR = r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})'
INTEGRAL = r'"-"? ("0" | [1-9] [0-9]{0,15})'
PRIMITIVES = {
    "space": SPACE,
    "char": CHAR,
    "string": r'"\"" char* "\"" space',
    "integer": f"{INTEGRAL} space",
    "number": rf'{INTEGRAL} ("." [0-9]{{1,16}})? ([eE] [-+]? [0-9]{{1,3}})? space',
    "boolean": '("true" | "false") space',
    "null": '"null" space',
    "object": r'"{" space (string ":" space value ("," space string ":" space value)*)? "}" space',
    "array": '"[" space (value ("," space value)*)? "]" space',
    "value": "object | array | string | number | boolean | null",
}
TYPES = ("string", "integer", "number", "boolean", "null", "object", "array")
ANNOTATIONS = frozenset(
    [
        "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
        "deprecated", "readOnly", "writeOnly", "discriminator", "strict",
    ]
)  # fmt: skip
"""Keywords that change nothing."""
OF_TYPES = {
    "string": frozenset(("minLength", "maxLength")),
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
}
JSON_TYPES: dict[type, set[str]] = {
    str: {"string"},
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    type(None): {"null"},
    dict: {"object"},
    list: {"array"},
}
MAX_RULES = 10_000


class SchemaError(ValueError):
    """The schema cannot be said in GBNF; `at` is the part that cannot, such as "properties.age.minimum"."""

    def __init__(self, at: str, reason: str):
        super().__init__(reason)
        self.at = at


def schema_to_gbnf(schema: Any) -> str:
    """The grammar, whose start rule is `root`. Raises SchemaError."""
    writer = GbnfWriter(schema)
    try:
        writer.rules["root"] = writer.expression(schema, "", "root")
    except RecursionError:
        raise SchemaError("", "is nested too deeply") from None
    return writer.text()


class GbnfWriter:
    """Collects rules, by name, while it walks through a schema. `at` is the path of a part, `name` its rule's."""

    def __init__(self, root: Any):
        self._root = root
        self._by_reference: dict[str, str] = {}
        self.rules = {"root": ""}

    def text(self) -> str:
        """The rules, and those of JSON itself, `root` first."""
        first = f"root ::= {self.rules['root']}\n"
        rest = {**self.rules, **PRIMITIVES}
        return first + "".join([f"{name} ::= {body}\n" for name, body in rest.items() if name != "root"])

    def expression(self, schema: Any, at: str, name: str) -> str:
        """What stands for the schema on the right of a rule. Raises SchemaError."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise SchemaError(at, "must be a JSON schema, an object")
        keywords = schema.keys() - ANNOTATIONS
        for keyword, write in (("$ref", self._reference), ("const", self._const), ("enum", self._enum)):
            if keyword in keywords:
                refuse(keywords - {keyword, *(() if keyword == "$ref" else ("type",))}, at)
                return write(schema, at)
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in keywords:
                refuse(keywords - {keyword}, at)
                return self._branches(schema[keyword], keyword, below(at, keyword), name)
        return self._typed(schema, keywords, at, name)

    def _typed(self, schema: Schema, keywords: Set[str], at: str, name: str) -> str:
        types = types_of(schema, at) or [implied_type(keywords)]
        known = {"type"}.union(*(OF_TYPES.get(each, ()) for each in types))
        refuse(keywords - known, at)
        return " | ".join([self._of_type(each, schema, at, f"{name}-{each}") for each in types])

    def _of_type(self, kind: str, schema: Schema, at: str, name: str) -> str:
        if not schema.keys() & OF_TYPES.get(kind, frozenset()):
            return kind
        write = {"string": self._string, "object": self._object, "array": self._array}[kind]
        return self._rule(name, write(schema, at, name))

    def _rule(self, name: str, body: str) -> str:
        """Adds a rule; its name, which is a new one if there is another of this name."""
        if len(self.rules) >= MAX_RULES:
            raise SchemaError("", "is too large")
        numbered = (f"{name}-{number}" for number in count(len(self.rules)))
        free = next(each for each in chain([name], numbered) if each not in self.rules and each not in PRIMITIVES)
        self.rules[free] = body
        return free

    def _reference(self, schema: Schema, at: str) -> str:
        """A rule of its own for what is referred to, which may refer to itself."""
        reference = schema["$ref"]
        if reference == "#":
            return "root"
        if reference not in self._by_reference:
            target = self._find(reference, below(at, "$ref"))
            name = self._by_reference[reference] = self._rule(clean(reference.rpartition("/")[2]), "")
            self.rules[name] = self.expression(target, reference.removeprefix("#/").replace("/", "."), name)
        return self._by_reference[reference]

    def _find(self, reference: Any, at: str) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise SchemaError(at, "must begin with #/")
        found = self._root
        for part in reference[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise SchemaError(at, "leads to nothing")
            found = found[key]
        return found

    def _const(self, schema: Schema, at: str) -> str:
        return self._values([schema["const"]], schema, at)

    def _enum(self, schema: Schema, at: str) -> str:
        if not isinstance(schema["enum"], list):
            raise SchemaError(below(at, "enum"), "must be a list of values")
        return self._values(schema["enum"], schema, at)

    def _values(self, values: Sequence[Any], schema: Schema, at: str) -> str:
        """Those that are also of the schema's type."""
        types = types_of(schema, at)
        fitting = [literal(value) for value in values if not types or type_of(value) & set(types)]
        if not fitting:
            raise SchemaError(at, "no value is possible")
        return "(" + " | ".join(fitting) + ") space"

    def _branches(self, branches: Any, keyword: str, at: str, name: str) -> str:
        if not isinstance(branches, list) or not branches:
            raise SchemaError(at, "must be a list of JSON schemas")
        if keyword == "allOf" and len(branches) > 1:
            raise SchemaError(at, "of more than one schema cannot be said in GBNF")
        parts = [self.expression(each, f"{at}[{i}]", f"{name}-{i}") for i, each in enumerate(branches)]
        return self._rule(f"{name}-{keyword}", " | ".join(parts))

    def _string(self, schema: Schema, at: str, name: str) -> str:
        return rf'"\"" char{bounds(schema, "minLength", "maxLength", at)} "\"" space'

    def _array(self, schema: Schema, at: str, name: str) -> str:
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise SchemaError(below(at, "prefixItems"), "must be a list of JSON schemas")
        if first:
            return self._tuple(schema, first, at, name)
        bounds(schema, "minItems", "maxItems", at)  # both are numbers, in order
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if schema.get("items") is False or high == 0:
            return '"[" space "]" space'
        item = self._rule(
            f"{name}-item", self.expression(schema.get("items", True), below(at, "items"), f"{name}-item")
        )
        more = f'{item} ("," space {item}){repeated(max(0, low - 1), None if high is None else high - 1)}'
        return f'"[" space ({more}){"" if low else "?"} "]" space'

    def _tuple(self, schema: Schema, first: Sequence[Any], at: str, name: str) -> str:
        """Exactly the items of `prefixItems`."""
        for keyword in ("minItems", "maxItems"):
            if schema.get(keyword, len(first)) != len(first):
                raise SchemaError(below(at, keyword), "must be the number of prefixItems")
        if schema.get("items", False) is not False:
            raise SchemaError(below(at, "items"), "beside prefixItems cannot be said in GBNF; send false")
        items = [
            self._rule(f"{name}-{i}", self.expression(each, f"{below(at, 'prefixItems')}[{i}]", f"{name}-{i}"))
            for i, each in enumerate(first)
        ]
        return '"[" space ' + ' "," space '.join(items) + ' "]" space'

    def _object(self, schema: Schema, at: str, name: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping):
            raise SchemaError(below(at, "properties"), "must be an object of JSON schemas")
        if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
            raise SchemaError(below(at, "required"), "must be a list of strings")
        others = schema.get("additionalProperties", True)
        unnamed = [key for key in required if key not in properties]
        if unnamed and others is False:
            raise SchemaError(below(at, "required"), f"{unnamed[0]!r} is not among properties")
        parts = {**properties, **dict.fromkeys(unnamed, others)}
        if not parts:
            return '"{" space "}" space' if others is False else self._map(others, at, name)
        pairs = [(self._pair(key, part, at, name), key in required) for key, part in parts.items()]
        return f'"{{" space {self._members(pairs, name)} "}}" space'

    def _map(self, values: Any, at: str, name: str) -> str:
        """An object of any keys."""
        value = self._rule(f"{name}-value", self.expression(values, below(at, "additionalProperties"), f"{name}-value"))
        pair = f'string ":" space {value}'
        return f'"{{" space ({pair} ("," space {pair})*)? "}}" space'

    def _pair(self, key: str, schema: Any, at: str, name: str) -> str:
        rule = f"{name}-{clean(key)}"
        value = self.expression(schema, f"{below(at, 'properties')}.{key}", rule)
        return self._rule(rule, f'{literal(key)} space ":" space ({value})')

    def _members(self, pairs: Sequence[tuple[str, bool]], name: str) -> str:
        """(pair, whether it is required) in order. From the last on: what may follow a pair, and what may stand where
        none came before."""
        begin = rest = '""'
        for index in reversed(range(len(pairs))):
            pair, required = pairs[index]
            begin = self._rule(f"{name}-begin", f"{pair} {rest}" + ("" if required else f" | {begin}"))
            if index:
                rest = self._rule(f"{name}-rest", f'"," space {pair} {rest}' + ("" if required else f" | {rest}"))
        return begin


def types_of(schema: Schema, at: str) -> list[str]:
    """What `type` names, nothing where there is none. Raises SchemaError."""
    given = schema.get("type", [])
    types = given if isinstance(given, list) else [given]
    for each in types:
        if each not in TYPES:
            raise SchemaError(below(at, "type"), f"must be one of {', '.join(TYPES)}")
    return types


def type_of(value: Any) -> set[str]:
    """The types that it has: whole numbers have two."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return JSON_TYPES[type(value)]


def refuse(keywords: Set[str], at: str) -> None:
    if keywords:
        raise SchemaError(below(at, min(keywords)), "cannot be said in GBNF")


def implied_type(keywords: Set[str]) -> str:
    """Of a schema that does not say it: as the keywords are meant."""
    return next((kind for kind, own in OF_TYPES.items() if keywords & own), "value")


def literal(value: Any) -> str:
    """The value's JSON as a string of GBNF."""
    text = json.dumps(value, ensure_ascii=False)
    return '"' + re.sub(r'["\\]', r"\\\g<0>", text) + '"'


def bounds(schema: Schema, low: str, high: str, at: str) -> str:
    """How often, from two keywords. Raises SchemaError."""
    for keyword in (low, high):
        value = schema.get(keyword, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_RULES:
            raise SchemaError(below(at, keyword), f"must be a number from 0 to {MAX_RULES}")
    if high in schema and schema.get(low, 0) > schema[high]:
        raise SchemaError(below(at, low), f"must not exceed {high}")
    return repeated(schema.get(low, 0), schema.get(high))


def repeated(low: int, high: int | None) -> str:
    if low == 0 and high is None:
        return "*"
    return f"{{{low},{'' if high is None else high}}}"


def clean(name: str) -> str:
    """As a part of a rule's name."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-") or "x"


def below(at: str, keyword: str) -> str:
    return f"{at}.{keyword}" if at else keyword
