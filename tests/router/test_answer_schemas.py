"""Answers with all that can be in them, such as thoughts, calls and logprobs, against what /openapi.json tells of."""

import json
from typing import Any

import pytest
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import JobError
from isthmus.tests.router.edge import ask, ids, saying, served
from isthmus.tests.router.test_messages import OUTPUT, THINKS
from isthmus.tests.router.test_openapi_conformance import EVENTS, JSON, strict_page
from isthmus.tests.router.test_tools import NOW, SETTINGS, WEATHER
from jsonschema import Draft202012Validator

PAGE = strict_page(create_app(FakeCore(), served()))
LINES = "application/x-ndjson"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 500}
TOOLS = {"tools": [WEATHER, NOW]}
RESPONSE = {"input": "hi", "tools": [{"type": "function", **each["function"]} for each in (WEATHER, NOW)]}
USES = {"tools": [{"name": "weather", "input_schema": {"type": "object"}}, {"name": "now", "input_schema": {}}]}
TEXT = {"prompt": "hi", "max_tokens": 5}
CASES = {
    "tools": ("/v1/chat/completions", {**CHAT, **TOOLS}),
    "chat logprobs": ("/v1/chat/completions", {**CHAT, "n": 2, "logprobs": True, "top_logprobs": 2}),
    "functions": ("/v1/chat/completions", {**CHAT, "functions": [each["function"] for each in (WEATHER, NOW)]}),
    "chat token ids": ("/v1/chat/completions", {**CHAT, **TOOLS, "return_token_ids": True}),
    "text token ids": ("/v1/completions", {**TEXT, "n": 2, "return_token_ids": True}),
    "response": ("/v1/responses", RESPONSE),
    "message": ("/v1/messages", {**CHAT, **USES}),
    "stop sequence": ("/v1/messages", {**CHAT, "stop_sequences": ["m"]}),
    "echo": ("/v1/completions", {**TEXT, "n": 2, "echo": True, "logprobs": 2, "stop": "m"}),
}


def validator(path: str, media_type: str) -> Draft202012Validator:
    media = PAGE["paths"][path]["post"]["responses"]["200"]["content"][media_type]
    if media_type != EVENTS:
        return Draft202012Validator(media["schema"] if media_type == JSON else media["itemSchema"])
    data = media["itemSchema"]["properties"]["data"]
    return Draft202012Validator(data.get("anyOf", [data])[0]["contentSchema"])


def told(core: FakeCore, path: str, body: dict[str, Any]) -> Any:
    reply = ask(core, "POST", path, json=body, served_with={**SETTINGS, **THINKS})
    assert reply.status_code == 200, reply.text
    return reply


def events(reply: Any) -> list[Any]:
    datas = [event.partition("data: ")[2] for event in reply.text.split("\n\n")]
    return [json.loads(data) for data in datas if data not in ("", "[DONE]")]


@pytest.mark.parametrize("name", CASES)
def test_a_whole_answer(name: str) -> None:
    path, body = CASES[name]
    extra = {"prompt_logprobs": 1} if "completions" in path else {}
    validator(path, JSON).validate(told(saying(OUTPUT), path, {**body, **extra}).json())


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_stream(name: str, continuous: bool) -> None:
    path, body = CASES[name]
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    extra = {"stream_options": options} if "completions" in path else {}
    told_events = events(told(saying(OUTPUT), path, {**body, **extra, "stream": True}))
    assert len(told_events) > 3
    for event in told_events:
        validator(path, EVENTS).validate(event)


def test_kobolds_answer_with_logprobs() -> None:
    reply = told(saying(OUTPUT), "/api/v1/generate", {"prompt": "hi", "logprobs": True})
    validator("/api/v1/generate", JSON).validate(reply.json())
    assert reply.json()["results"][0]["logprobs"]["content"]


def failing(job: Any, choice: int) -> Any:
    yield from ids("It")
    raise JobError(503, "the server is shutting down")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/completions", "/api/extra/generate/stream"])
def test_the_last_event_of_a_stream_that_fails(path: str) -> None:
    body = {"/v1/responses": {"input": "hi"}, "/v1/messages": CHAT}.get(path, TEXT)
    stream = {} if path.startswith("/api") else {"stream": True}
    for event in events(told(FakeCore(failing), path, {**body, **stream})):
        validator(path, EVENTS).validate(event)
    assert "shutting down" in json.dumps(event)


@pytest.mark.parametrize(
    ("path", "body"), [("/api/chat", {"messages": CHAT["messages"]}), ("/api/generate", {"prompt": "hi"})]
)
def test_the_last_line_of_a_stream_that_fails(path: str, body: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in told(FakeCore(failing), path, body).text.splitlines()]
    for line in lines:
        validator(path, LINES).validate(line)
    assert lines[-1] == {"error": "the server is shutting down"}


@pytest.mark.parametrize("path", ["/api/extra/tokencount", "/api/extra/json_to_grammar"])
def test_a_refusal_that_says_more_than_others(path: str) -> None:
    reply = ask(FakeCore(), "POST", path, json={})
    [_, more] = PAGE["paths"][path]["post"]["responses"]["400"]["content"][JSON]["schema"]["allOf"]
    Draft202012Validator(more).validate(reply.json())
    assert (reply.status_code, reply.json().keys()) == (400, {"detail", "error", *more["properties"]})
