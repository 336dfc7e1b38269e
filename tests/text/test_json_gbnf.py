"""Schemas as GBNF: what the grammar lets through, held against the schema's own grammar, and what is refused."""

import json
from typing import Any

import pytest
from isthmus.tests.text.test_grammar import accepts
from isthmus.text.json_gbnf import SchemaError, schema_to_gbnf
from isthmus.wire.sampling import Guidance

INTEGER, STRING = {"type": "integer"}, {"type": "string"}
PERSON = {
    "title": "Person",
    "type": "object",
    "properties": {"a b": INTEGER, "name": STRING, "tags": {"type": "array", "items": STRING, "maxItems": 2}},
    "required": ["name"],
    "additionalProperties": False,
}
NODE = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
TREE = {"$ref": "#/$defs/node", "$defs": {"node": NODE}}

CASES: list[tuple[Any, list[str], list[str]]] = [
    (True, ['{"a": [1, null, "x\\n"], "b": {}}', "[]", "-1.5e+3", "true"], ["01", "{a: 1}", "nope", ""]),
    (STRING, ['""', '"é\\u0001\\"\\\\"'], ['"', '"\n"', "1", '"\\x"']),
    ({"type": "string", "minLength": 1, "maxLength": 3}, ['"a"', '"\\n\\n€"'], ['""', '"abcd"']),
    (INTEGER, ["0", "-12"], ["1.5", "012", "-"]),
    ({"type": "number"}, ["0.5", "-1e9", "7"], ["1.", ".5"]),
    ({"type": ["string", "null"]}, ['"x"', "null"], ["1"]),
    ({"enum": [1, "a\"b", None, {"k": []}]}, ["1", '"a\\"b"', "null", '{"k": []}'], ["2", '"a"']),
    ({"type": "integer", "enum": [1, "a", 2.5, 3.0]}, ["1", "3.0"], ['"a"', "2.5"]),
    ({"const": "a\\b\n"}, ['"a\\\\b\\n"'], ['"a\\b"']),
    (PERSON, ['{"name": "x"}', '{"a b": 1, "name": "x", "tags": ["y", "z"]}', '{ "name":"x","tags":[] }'],
     ["{}", '{"a b": 1}', '{"name": "x", "a b": 1}', '{"name": "x", "tags": ["", "", ""]}', '{"name": "x", "more": 1}',
      '{, "name": "x"}', '{"name": "x",}']),
    ({"type": "object", "properties": {"a": INTEGER, "b": INTEGER, "c": INTEGER}},
     ["{}", '{"a": 1}', '{"b": 1}', '{"c": 1}', '{"a": 1, "c": 2}', '{"a": 1, "b": 2, "c": 3}'], ['{"c": 1, "a": 2}']),
    ({"type": "object", "additionalProperties": INTEGER}, ["{}", '{"x": 1, "y": 2}'], ['{"x": "y"}']),
    ({"type": "object", "additionalProperties": False}, ["{}", "{ }"], ['{"x": 1}']),
    ({"type": "object", "required": ["x"]}, ['{"x": [1]}'], ["{}"]),
    ({"items": INTEGER, "minItems": 2}, ["[1, 2]", "[1,2,3,4]"], ["[1]", "[]", '["a", 1]']),
    ({"type": "array", "items": STRING, "maxItems": 0}, ["[]"], ['["a"]']),
    ({"type": "array", "prefixItems": [INTEGER, STRING], "items": False}, ['[1, "a"]'], ["[1]", '["a", 1]']),
    ({"oneOf": [INTEGER, {"type": "array", "items": {"type": "boolean"}}]}, ["1", "[true]"], ["[1]", "true"]),
    ({"allOf": [{"type": ["null", "boolean"]}]}, ["null", "false"], ["0"]),
    (TREE, ["{}", '{"next": null}', '{"next": {"next": {}}}'], ['{"next": 1}', "null"]),
    ({"type": "array", "items": {"$ref": "#"}}, ["[]", "[[], [[]]]"], ["[1]"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=[json.dumps(case[0])[:50] for case in CASES])
def test_the_grammar_lets_through_what_the_schema_describes(schema, good, bad):
    grammar = Guidance("gbnf", schema_to_gbnf(schema))
    assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []


@pytest.mark.parametrize(("schema", "good", "bad"), CASES[1:], ids=[json.dumps(case[0])[:50] for case in CASES[1:]])
def test_the_schemas_own_grammar_agrees(schema, good, bad):
    """But for what it is strict about: whole numbers with a fraction, and the order of properties."""
    grammar = Guidance("json_schema", json.dumps(schema))
    assert [text for text in good if text != "3.0" and not accepts(grammar, text)] == []


def test_it_is_grammar_of_llama_cpp_with_the_start_first():
    text = schema_to_gbnf(PERSON)
    assert text.startswith("root ::= root-object\n")
    names = [line.partition(" ::= ")[0] for line in text.splitlines()]
    assert len(names) == len(set(names))
    assert all(name.replace("-", "").isalnum() for name in names)


REFUSED = [
    (5, ""),
    ({"type": "text"}, "type"),
    ({"type": "string", "pattern": "^a"}, "pattern"),
    ({"type": "string", "format": "date"}, "format"),
    ({"type": "integer", "minimum": 0}, "minimum"),
    ({"properties": {"a": {"items": {"type": "number", "multipleOf": 2}}}}, "properties.a.items.multipleOf"),
    ({"patternProperties": {}}, "patternProperties"),
    ({"type": "object", "minProperties": 1}, "minProperties"),
    ({"properties": {}, "required": ["x"], "additionalProperties": False}, "required"),
    ({"allOf": [INTEGER, INTEGER]}, "allOf"),
    ({"anyOf": []}, "anyOf"),
    ({"anyOf": [INTEGER, {"not": {}}]}, "anyOf[1].not"),
    ({"anyOf": [INTEGER], "type": "string"}, "type"),
    ({"$ref": "https://example.com/schema"}, "$ref"),
    ({"$ref": "#/$defs/none"}, "$ref"),
    ({"enum": []}, ""),
    ({"type": "string", "const": 5}, ""),
    ({"type": "string", "minLength": 3, "maxLength": 1}, "minLength"),
    ({"type": "array", "minItems": -1}, "minItems"),
    ({"prefixItems": [INTEGER], "items": INTEGER}, "items"),
    ({"prefixItems": [INTEGER], "minItems": 0}, "minItems"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "at"), REFUSED)
def test_what_cannot_be_said_is_named(schema, at):
    with pytest.raises(SchemaError) as caught:
        schema_to_gbnf(schema)
    assert caught.value.at == at


def test_names_that_are_taken_are_numbered():
    keys = ["a", "a!", "a?", *[f"a-{number}" for number in range(20)], "string", "root"]
    schema = {"properties": {key: {"enum": [key]} for key in keys}, "required": keys}
    text = json.dumps({key: key for key in keys})
    assert accepts(Guidance("gbnf", schema_to_gbnf(schema)), text)


def test_a_schema_of_too_many_parts_is_refused():
    with pytest.raises(SchemaError, match="too large"):
        schema_to_gbnf({"properties": {f"p{number}": INTEGER for number in range(5000)}})


def test_a_schema_without_end_is_refused():
    deep: Any = INTEGER
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(SchemaError, match="deeply"):
        schema_to_gbnf(deep)
