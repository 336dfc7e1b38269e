"""Every field that constrains an output, on every route: what the job is given, and what is refused by which name."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import ask, http_client, say, saying
from isthmus.wire.sampling import Guidance

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}}
GBNF = 'root ::= "a" | "b"'
LARK = 'start: "a" | "b"'
TAG = {"structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}], "triggers": ["<f"]}

SCHEMA_GUIDANCE = Guidance("json_schema", json.dumps(SCHEMA))
ANY_OBJECT = Guidance("json_schema", json.dumps({"type": "object"}))
FIELDS: list[tuple[dict[str, Any], Guidance | None]] = [
    ({"guided_json": SCHEMA}, SCHEMA_GUIDANCE),
    ({"guided_json": json.dumps(SCHEMA)}, SCHEMA_GUIDANCE),
    ({"json_schema": SCHEMA}, SCHEMA_GUIDANCE),
    ({"guided_regex": "a|b"}, Guidance("regex", "a|b")),
    ({"guided_grammar": LARK}, Guidance("lark", LARK)),
    ({"guided_grammar": GBNF}, Guidance("gbnf", GBNF)),
    ({"grammar": GBNF}, Guidance("gbnf", GBNF)),
    ({"grammar_string": GBNF}, Guidance("gbnf", GBNF)),
    ({"grammar": json.dumps(SCHEMA)}, SCHEMA_GUIDANCE),
    ({"grammar": "\n " + json.dumps(SCHEMA), "guided_json": SCHEMA}, SCHEMA_GUIDANCE),
    ({"grammar": GBNF, "grammar_string": GBNF, "grammar_retain_state": False}, Guidance("gbnf", GBNF)),
    ({"guided_choice": ["a", 'b"']}, Guidance("choice", '["a", "b\\""]')),
    ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, SCHEMA_GUIDANCE),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, SCHEMA_GUIDANCE),
    ({"structured_outputs": {"json": SCHEMA}}, SCHEMA_GUIDANCE),
    ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
    ({"structured_outputs": {"regex": "a|b"}}, Guidance("regex", "a|b")),
    ({"structured_outputs": {"choice": ["a"]}}, Guidance("choice", '["a"]')),
    ({"structured_outputs": {"grammar": GBNF}}, Guidance("gbnf", GBNF)),
    ({"guided_regex": "a", "response_format": {"type": "text"}, "grammar": ""}, Guidance("regex", "a")),
    ({"guided_json": {}, "guided_grammar": "", "structural_tag": {}}, None),
    ({"guided_json": "", "guided_choice": [], "guided_regex": None, "grammar_retain_state": True}, None),
    ({}, None),
]
ROUTES = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/api/v1/generate": {"prompt": "hi"},
}


@pytest.mark.parametrize("path", ROUTES)
def test_what_the_job_is_given(path: str) -> None:
    for fields, guidance in FIELDS:
        core = saying("a")
        reply = ask(core, "POST", path, json={**ROUTES[path], **fields})
        assert reply.status_code == 200, (fields, reply.text)
        assert core.streams[0].job.params.guidance == guidance, fields


def test_structural_tags() -> None:
    for fields in (
        {"structural_tag": TAG},
        {"structural_tag": json.dumps({"type": "structural_tag", **TAG})},
        {"structured_outputs": {"structural_tag": TAG}},
        {"response_format": {"type": "structural_tag", **TAG}},
    ):
        core = saying("a")
        assert ask(core, "POST", "/v1/completions", json={"prompt": "hi", **fields}).status_code == 200
        guidance = core.streams[0].job.params.guidance
        assert guidance.kind == "structural_tag"
        assert json.loads(guidance.spec) == {**TAG, "type": "structural_tag"}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"guided_json": "{"}, "guided_json", "not JSON"),
        ({"guided_json": [1]}, "guided_json", "expected"),
        ({"guided_json": {"type": "nothing"}}, "guided_json", "nothing"),
        ({"json_schema": {"not": {}}}, "json_schema", "not"),
        ({"guided_regex": "("}, "guided_regex", "unclosed group"),
        ({"guided_regex": 5}, "guided_regex", "expected"),
        ({"guided_grammar": "start: nowhere"}, "guided_grammar", "nowhere"),
        ({"grammar": "root ::= nowhere"}, "grammar", "nowhere"),
        ({"grammar_string": "root ::= ("}, "grammar_string", "GBNF"),
        ({"guided_choice": "a"}, "guided_choice", "expected"),
        ({"guided_choice": [1]}, "guided_choice[0]", "expected"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema.schema"),
        ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format", "no structures"),
        ({"structural_tag": {"format": {}}}, "structural_tag", "newer form"),
        ({"structural_tag": {"structures": [{"begin": "a"}]}}, "structural_tag", "missing"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "cannot be combined"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp", "unknown"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "guided_regex"),
        ({"grammar_string": GBNF, "response_format": {"type": "json_object"}}, "response_format", "grammar_string"),
        ({"grammar": GBNF, "grammar_string": 'root ::= "c"'}, "grammar_string", "contradicts grammar"),
        ({"grammar": GBNF, "grammar_retain_state": True}, "grammar_retain_state", "not supported"),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": "("}, "guided_whitespace_pattern", "regex"),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": " " * 1001}, "guided_whitespace_pattern", "1001"),
        ({"guided_whitespace_pattern": " *"}, "guided_whitespace_pattern", "needs guided_json"),
        ({"guided_regex": "a", "guided_whitespace_pattern": " *"}, "guided_whitespace_pattern", "needs guided_json"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": "("}}, "structured_outputs", "whitespace_pattern"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs", "whitespace_pattern"),
        ({"guidance": ["regex", "a"]}, "guidance", "unknown field"),
    ],
)
@pytest.mark.parametrize("path", ROUTES)
def test_refusals_name_the_field(path: str, fields: dict[str, Any], param: str, says: str) -> None:
    core = saying("a")
    reply = ask(core, "POST", path, json={**ROUTES[path], **fields})
    assert reply.status_code == 400, reply.text
    error = reply.json()["detail"] if path.startswith("/api") else reply.json()["error"]
    assert error["param"] == param
    message = error["msg"] if path.startswith("/api") else error["message"]
    assert says in message
    assert not core.streams


def test_whitespace() -> None:
    for fields, expected in (
        ({"guided_json": {"type": "integer"}, "guided_whitespace_pattern": " *"}, {"whitespace_pattern": " *"}),
        (
            {"response_format": {"type": "json_object"}, "guided_whitespace_pattern": "[ ]?"},
            {"whitespace_pattern": "[ ]?"},
        ),
        ({"structured_outputs": {"json": {"type": "integer"}, "whitespace_pattern": " "}}, {"whitespace_pattern": " "}),
        (
            {"structured_outputs": {"json": {"type": "integer"}, "disable_any_whitespace": True}},
            {"whitespace_pattern": ""},
        ),
    ):
        core = saying("a")
        assert ask(core, "POST", "/v1/completions", json={"prompt": "hi", **fields}).status_code == 200
        assert json.loads(core.streams[0].job.params.guidance.spec)["x-guidance"] == expected


def test_a_costly_grammar_is_refused_alone() -> None:
    costly = {"allOf": [{"type": "string", "pattern": f".*{c}.{{15}}.*"} for c in "abcdefghijkl"]}

    async def run() -> list[httpx.Response]:
        async with http_client(FakeCore(say("fine"))) as client:
            bodies = [{"prompt": "hi", **fields} for fields in ({"guided_json": costly}, {}, {"guided_regex": "fine"})]
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    refused, plain, guided = asyncio.run(run())
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_grammar"
    assert plain.json()["choices"][0]["text"] == guided.json()["choices"][0]["text"] == "fine"
