"""POST /v1/responses, as OpenAI's own client reads it."""

import json
from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import TOKENIZER, ask, ids, saying
from isthmus.tests.router.test_openai import failing, with_client
from isthmus.tests.router.test_tools import CALL, NOW_CALL, SETTINGS, TEMPLATE, TWO, WEATHER, accepted
from isthmus.text.chat_template import ChatTemplate
from isthmus.text.reasoning import STYLES

TOOL = {"type": "function", **WEATHER["function"]}
NOW = {"type": "function", "name": "now"}
THINKS = {**SETTINGS, "reasoning": STYLES["deepseek_r1"]}
OUTPUT = "Hm.</think>" + TWO


def post(core: FakeCore, body: dict[str, Any], **changes: Any) -> Any:
    return ask(core, "POST", "/v1/responses", json={"input": "hi", **body}, served_with={**SETTINGS, **changes})


def prompt_of(core: FakeCore) -> str:
    return TOKENIZER.decode(core.streams[0].job.prompt_ids, skip_special_tokens=False)


def test_a_response():
    async def use(client):
        return await client.responses.create(model="tiny", input="hi", instructions="Be brief.", max_output_tokens=50)

    core = saying("Hello.")
    response = with_client(core, use, **SETTINGS)
    assert response.id.startswith("resp_")
    assert (response.output_text, response.status, response.model) == ("Hello.", "completed", "tiny")
    assert (response.usage.output_tokens, response.max_output_tokens) == (7, 50)
    assert prompt_of(core) == "system:Be brief.\nuser:hi\n"


def kinds(response: Any) -> list[tuple[str, str]]:
    shown = {
        "reasoning": lambda item: item.content[0].text,
        "message": lambda item: item.content[0].text,
        "function_call": lambda item: item.name + item.arguments,
    }
    return [(item.type, shown[item.type](item)) for item in response.output]


ITEMS = [
    ("reasoning", "Hm."),
    ("message", "Let me see."),
    ("function_call", 'weather{"city": "Pa\\"ris"}'),
    ("function_call", "now{}"),
]


WITH_TEXT_AFTER = (OUTPUT + "\nSo.", [*ITEMS, ("message", "\nSo.")])


@pytest.mark.parametrize(("output", "items"), [(OUTPUT, ITEMS), WITH_TEXT_AFTER], ids=["calls last", "text last"])
@pytest.mark.parametrize("tokens_per_step", [1, 5, 1000])
def test_thoughts_text_and_calls_are_items(output, items, tokens_per_step):
    async def use(client):
        asked = {"model": "tiny", "input": "hi", "tools": [TOOL, NOW]}
        whole = await client.responses.create(**asked)
        async with client.responses.stream(**asked) as stream:
            told = [event async for event in stream]
            return whole, told, await stream.get_final_response()

    whole, told, final = with_client(saying(output, tokens_per_step=tokens_per_step), use, **THINKS)
    assert kinds(whole) == kinds(final) == items
    assert all(item.status == "completed" for item in [*whole.output, *final.output])
    assert whole.usage.output_tokens_details.reasoning_tokens == len(ids("Hm."))
    assert [event.sequence_number for event in told] == list(range(len(told)))
    assert [event.type for event in told[:2]] == ["response.created", "response.in_progress"]
    assert told[-1].type == "response.completed"
    added = [(event.output_index, event.item.type) for event in told if event.type == "response.output_item.added"]
    assert added == [(index, kind) for index, (kind, _) in enumerate(items)]
    assert [event.type for event in told].count("response.output_item.done") == len(items)


def test_the_bytes_of_events():
    text = post(saying("Hi"), {"stream": True}).text
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    told = [block.split("\n") for block in blocks]
    assert all(len(lines) == 2 and lines[0] == "event: " + json.loads(lines[1][6:])["type"] for lines in told)
    assert [lines[0].removeprefix("event: response.") for lines in told] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert json.loads(told[2][1][6:])["item"]["content"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_what_max_output_tokens_cuts_is_incomplete(stream):
    reply = post(saying("Hello."), {"max_output_tokens": 3, "stream": stream})
    response = json.loads(reply.text.split("data: ")[-1])["response"] if stream else reply.json()
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["content"][0]["text"] == "Hel"
    assert response["output"][0]["status"] == "incomplete"


def test_an_error_after_the_first_token_fails_the_response():
    last = json.loads(post(failing("ab"), {"stream": True}).text.split("data: ")[-1])
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "server_error", "message": "the worker died"}


def test_a_conversation_becomes_messages():
    def text(kind: str, value: str) -> list[dict[str, Any]]:
        return [{"type": kind, "text": value}]

    conversation = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": text("input_text", "hi")},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": text("reasoning_text", "Hm.")},
        {"type": "message", "role": "assistant", "content": text("output_text", "Let me see."), "status": "completed"},
        {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"type": "function_call_output", "call_id": "c2", "output": text("input_text", "one")},
        {"role": "assistant", "content": "Noon."},
        {"role": "user", "content": "ok"},
    ]
    core = saying("x")
    template = ChatTemplate("{# with tools #}{% for m in messages %}{{ m | tojson }}\n{% endfor %}", {})
    thought = {"reasoning_content": "Hm.", "thinking": "Hm."}  # the second name is transformers' doing
    assert post(core, {"input": conversation}, chat_template=template).status_code == 200
    lines = prompt_of(core).splitlines()
    shown = [{"id": call, "type": "function", "function": {"name": "now", "arguments": {}}} for call in ("c1", "c2")]
    assert [json.loads(line) for line in lines] == [
        {"content": "Be brief.", "role": "system"},
        {"content": "hi", "role": "user"},
        {"content": "Let me see.", "role": "assistant", **thought, "tool_calls": shown},
        {"content": "noon", "role": "tool", "tool_call_id": "c1"},
        {"content": "one", "role": "tool", "tool_call_id": "c2"},
        {"content": "Noon.", "role": "assistant"},
        {"content": "ok", "role": "user"},
    ]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GUIDED = [
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}}, ['{"a": 1}'], ["{}", "hello"]),
    ({"text": {"format": {"type": "json_object"}}}, ["{}"], ["hello"]),
    ({"text": {"format": {"type": "text"}}}, ["hello"], []),
    ({"tools": [TOOL, NOW], "tool_choice": "required"}, [CALL], ["hello"]),
    ({"tools": [TOOL, NOW], "tool_choice": {"type": "function", "name": "now"}}, [NOW_CALL], [CALL]),
]


@pytest.mark.parametrize(("body", "good", "bad"), GUIDED, ids=[json.dumps(row[0])[:60] for row in GUIDED])
def test_what_the_model_may_write(body, good, bad):
    core = saying("ok")
    reply = post(core, body)
    assert reply.status_code == 200, reply.text
    assert [text for text in good if not accepted(core, text)] == []
    assert [text for text in bad if accepted(core, text)] == []


ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}
REFUSED = [
    ({"input": None}, 400, "input"),
    ({"input": ""}, 400, "input"),
    ({"input": [{"type": "computer_call"}]}, 400, "input[0].type"),
    ({"input": [{"role": "robot", "content": "x"}]}, 400, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "input[0].content[0].type"),
    ({"input": "x" * 3000}, 400, "input"),
    ({"model": "gpt-9"}, 404, "model"),
    ({"max_output_tokens": 0}, 400, "max_output_tokens"),
    ({"max_output_tokens": 5000}, 400, "max_output_tokens"),
    ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
    ({"conversation": "conv_1"}, 400, "conversation"),
    ({"conversation": {"id": "conv_1"}}, 400, "conversation"),
    ({"background": True}, 400, "background"),
    ({"truncation": "auto"}, 400, "truncation"),
    ({"include": ["file_search_call.results"]}, 400, "include[0]"),
    ({"tools": [{"type": "web_search"}]}, 400, "tools[0].type"),
    ({"tools": [NOW, NOW]}, 400, "tools[1].name"),
    ({"tools": [{**NOW, "parameters": {"type": "x"}}]}, 400, "tools[0].parameters.type"),
    ({"tool_choice": {"type": "function", "name": "x"}, "tools": [NOW]}, 400, "tool_choice.name"),
    ({"tool_choice": {"type": "function"}, "tools": [NOW]}, 400, "tool_choice.name"),
    ({"tool_choice": {"type": "allowed_tools"}, "tools": [NOW]}, 400, "tool_choice"),
    ({"tool_choice": {**ALLOWED, "name": "now"}, "tools": [NOW]}, 400, "tool_choice.name"),
    ({"tool_choice": {**ALLOWED, "mode": None}, "tools": [NOW]}, 400, "tool_choice.mode"),
    ({"tool_choice": {**ALLOWED, "tools": None}, "tools": [NOW]}, 400, "tool_choice.tools"),
    ({"tool_choice": ALLOWED, "tools": [{**NOW, "name": "then"}]}, 400, "tool_choice.tools[0].name"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, 400, "text.format"),
    ({"messages": []}, 400, "messages"),
    ({"logprobs": True}, 400, "logprobs"),
    ({"logprobs": 2}, 400, "logprobs"),
    ({"prompt_logprobs": 0}, 400, "prompt_logprobs"),
    ({"top_logprobs": 2}, 400, "top_logprobs"),
    ({"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}, 400, "include[1]"),
    ({"metadata": {"a": 1}}, 400, "metadata"),
    ({"metadata": "a"}, 400, "metadata"),
    ({"store": "banana"}, 400, "store"),
    ({"prompt": {"id": "p"}}, 400, "prompt"),
    ({"input": [{"role": "user", "content": "x"}, {"type": "item_reference", "id": "x"}]}, 400, "input[1]"),
    ({"input": [{"id": "x", "type": None}]}, 400, "input[0]"),
]


@pytest.mark.parametrize(("body", "status", "param"), REFUSED, ids=[json.dumps(row[0])[:60] for row in REFUSED])
def test_refusals_name_the_field(body, status, param):
    core = FakeCore()
    reply = post(core, body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], core.streams) == (status, param, [])
    assert error["message"].startswith(f"{param}: ")


def test_what_is_not_kept_is_told():
    bodies = [{name: "x"} for name in ("previous_response_id", "conversation", "prompt")]
    for body in (*bodies, {"input": [{"type": "item_reference", "id": "x"}]}):
        error = post(FakeCore(), body).json()["error"]
        assert (error["code"], "nothing is kept" in error["message"]) == ("unsupported_field", True)


@pytest.mark.parametrize("asked", [{}, {"metadata": {"a": "b"}, "max_output_tokens": 30, "store": True}])
@pytest.mark.parametrize("stream", [False, True])
def test_what_was_asked_for_comes_back(asked, stream):
    reply = post(saying("ok"), {**asked, "stream": stream})
    if stream:
        last = reply.text.rstrip().rpartition("data: ")[2]
        response = json.loads(last)["response"]
    else:
        response = reply.json()
    shown = {name: response[name] for name in ("metadata", "max_output_tokens", "store")}
    assert shown == {"metadata": {}, "max_output_tokens": None, **asked, "store": False}


def test_null_is_as_good_as_left_out():
    nulls = {"prompt": None, "metadata": None, "store": None, "max_output_tokens": None, "top_logprobs": None}
    reasoning = {"effort": None, "summary": None, "generate_summary": None}
    reply = post(saying("ok"), {**nulls, "include": None, "reasoning": reasoning, "logprobs": False})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("length", [2, 9000])
def test_tokens_are_counted(length):
    body = {"input": "x" * length}
    reply = ask(FakeCore(), "POST", "/v1/responses/input_tokens", json=body, served_with=SETTINGS)
    assert reply.json() == {"object": "response.input_tokens", "input_tokens": len("user:\n") + length}


def test_samplers_and_no_ops_are_taken():
    core = saying("ok")
    body = {"temperature": 0.5, "top_k": 5, "store": True, "metadata": {}, "include": ["reasoning.encrypted_content"]}
    assert post(core, {**body, "previous_response_id": None}, chat_template=TEMPLATE).status_code == 200
    assert (core.streams[0].job.params.temperature, core.streams[0].job.params.top_k) == (0.5, 5)


def test_only_allowed_functions_are_called():
    core = saying("x")
    reply = post(core, {"tools": [NOW, {**NOW, "name": "then"}], "tool_choice": ALLOWED})
    assert reply.status_code == 200, reply.text
    assert reply.json()["tool_choice"] == ALLOWED
    grammar = core.streams[0].job.params.guidance.spec
    assert "now" in grammar
    assert "then" not in grammar
