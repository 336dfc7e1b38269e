"""Anthropic's POST /v1/messages: its shapes, its events, and the chat that a conversation means."""

import json
from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import JobError
from isthmus.router.messages_output import input_object
from isthmus.tests.router.edge import TEMPLATE, TOKENIZER, ask, ids, saying
from isthmus.tests.router.test_openai import failing
from isthmus.tests.router.test_tools import CALL, NOW_CALL, SETTINGS, TWO, WEATHER, WRONG, accepted
from isthmus.text.chat_template import ChatTemplate
from isthmus.text.reasoning import STYLES

PATH = "/v1/messages"
USER = {"role": "user", "content": "hi"}
TOOL = {"name": "weather", "description": "Of a city", "input_schema": WEATHER["function"]["parameters"]}
NOW = {"name": "now", "input_schema": {"type": "object"}}
TOOLS = {"tools": [TOOL, NOW]}
THINKS_NOT = {"reasoning": STYLES["qwen3"]}
THINKS = {"reasoning": STYLES["deepseek_r1"]}
OUTPUT = "Hm.</think>" + TWO


def post(core: FakeCore, body: dict[str, Any], *, path: str = PATH, **changes: Any) -> Any:
    whole = {"messages": [USER], "max_tokens": 500, **body}
    return ask(core, "POST", path, json=whole, served_with={**SETTINGS, **changes})


def prompt_of(core: FakeCore) -> str:
    return TOKENIZER.decode(core.streams[0].job.prompt_ids, skip_special_tokens=False)


def told(reply: Any) -> list[dict[str, Any]]:
    blocks = reply.text.split("\n\n")
    assert blocks.pop() == ""
    lines = [block.split("\n") for block in blocks]
    events = [json.loads(data.removeprefix("data: ")) for _, data in lines]
    assert [name for name, _ in lines] == ["event: " + event["type"] for event in events]
    return events


def test_a_message():
    core = saying("Hello.")
    message = post(core, {"system": [{"type": "text", "text": "Be brief."}], "model": "tiny"}).json()
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "Hello."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": len(prompt_of(core)), "cache_read_input_tokens": 0, "output_tokens": 7},
    }
    assert prompt_of(core) == "system:Be brief.\nuser:hi\n"


CONTENT = [
    {"type": "thinking", "thinking": "Hm.", "signature": ""},
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "name": "weather", "input": {"city": 'Pa"ris'}},
    {"type": "tool_use", "name": "now", "input": {}},
]


WITH_TEXT_AFTER = (OUTPUT + "\nSo.", [*CONTENT, {"type": "text", "text": "\nSo."}])


@pytest.mark.parametrize(("output", "content"), [(OUTPUT, CONTENT), WITH_TEXT_AFTER], ids=["calls last", "text last"])
@pytest.mark.parametrize("tokens_per_step", [1, 5, 1000])
def test_thoughts_text_and_tools_are_blocks(output, content, tokens_per_step):
    message = post(saying(output), TOOLS, **THINKS).json()
    assert message["stop_reason"] == "tool_use"
    assert [{k: v for k, v in block.items() if k != "id"} for block in message["content"]] == content
    events = told(post(saying(output, tokens_per_step=tokens_per_step), {**TOOLS, "stream": True}, **THINKS))
    assert events[0]["message"].keys() == message.keys()
    assert events[0]["message"]["content"] == []
    assert assembled(events) == content
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == {"output_tokens": message["usage"]["output_tokens"]}
    assert events[-1] == {"type": "message_stop"}


def assembled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a client puts together. Asserts that they come one after another."""
    blocks: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    is_open = False
    for event in events:
        match event:
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert (index, is_open) == (len(blocks), False)
                blocks.append(block)
                is_open = True
            case {"type": "content_block_delta", "index": index, "delta": {"partial_json": str(text), "type": kind}}:
                assert (index, is_open, kind) == (len(blocks) - 1, True, "input_json_delta")
                inputs[index] = inputs.get(index, "") + text
            case {"type": "content_block_delta", "index": index, "delta": {"type": kind, **delta}}:
                assert (index, is_open) == (len(blocks) - 1, True)
                name = str(kind).removesuffix("_delta")
                blocks[-1][name] += delta[name]
            case {"type": "content_block_stop", "index": index}:
                assert (index, is_open) == (len(blocks) - 1, True)
                is_open = False
    assert not is_open
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text)
    return [{k: v for k, v in block.items() if k != "id"} for block in blocks]


ENDINGS = [
    ({"max_tokens": 3}, "max_tokens", None, "Hel"),
    ({"stop_sequences": ["o."]}, "stop_sequence", "o.", "Hell"),
    ({}, "end_turn", None, "Hello."),
]


@pytest.mark.parametrize(("body", "reason", "sequence", "text"), ENDINGS)
@pytest.mark.parametrize("stream", [False, True])
def test_how_it_ends(body, reason, sequence, text, stream):
    reply = post(saying("Hello."), {**body, "stream": stream})
    ending = told(reply)[-2]["delta"] if stream else reply.json()
    content = assembled(told(reply)) if stream else reply.json()["content"]
    assert (ending["stop_reason"], ending["stop_sequence"]) == (reason, sequence)
    assert content == [{"type": "text", "text": text}]


@pytest.mark.parametrize("stream", [False, True])
def test_more_tokens_than_there_is_room_for_are_cut_to_the_context(stream):
    core, max_model_len = saying("x" * 300), 200
    reply = post(core, {"max_tokens": 128_000, "stream": stream}, max_model_len=max_model_len)
    ending = told(reply)[-2]["delta"] if stream else reply.json()
    assert ending["stop_reason"] == "model_context_window_exceeded"
    assert core.streams[0].job.params.max_tokens == max_model_len - len("user:hi\n")


def test_a_prompt_that_is_too_long_is_told_in_anthropics_words():
    reply = post(FakeCore(), {"messages": [{"role": "user", "content": "x" * 9000}]})
    assert (reply.status_code, "prompt is too long" in reply.json()["error"]["message"]) == (400, True)


def test_an_input_that_is_cut_is_shown_as_it_is():
    num_tokens = len(ids(CALL[: CALL.index("ris")]))
    [block] = post(saying(CALL), {**TOOLS, "max_tokens": num_tokens}).json()["content"]
    assert block["input"] == {"invalid_json": '{"city": "Pa\\"'}


def test_a_conversation_becomes_messages():
    conversation = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "now", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "noon"}]},
                {"type": "text", "text": "and?"},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "x", "is_error": True}]},
    ]
    core = saying("x")
    template = ChatTemplate("{# with tools #}{% for m in messages %}{{ m | tojson }}\n{% endfor %}", {})
    assert post(core, {"messages": conversation}, chat_template=template).status_code == 200
    thought = {"reasoning_content": "Hm.", "thinking": "Hm."}  # the second name is transformers' doing
    call = {"id": "t1", "type": "function", "function": {"name": "now", "arguments": {"a": 1}}}
    assert [json.loads(line) for line in prompt_of(core).splitlines()] == [
        {"content": "a", "role": "user"},
        {"content": "Let me see.", "role": "assistant", **thought, "tool_calls": [call]},
        {"content": "noon", "role": "tool", "tool_call_id": "t1"},
        {"content": "and?", "role": "user"},
        {"content": "x", "role": "tool", "tool_call_id": "t1"},
    ]


SAID = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Paris"}, {"type": "text", "text": "is"}]
OPEN_ENDS = [
    ("Paris is", "<|im_start|>assistant\nParis is"),
    ("Paris is ", "<|im_start|>assistant\nParis is "),
    ([{"type": "text", "text": "Paris is"}], "<|im_start|>assistant\nParis is"),
    (SAID, "<|im_start|>assistant\nParis\nis"),
    ("", "<|im_start|>assistant\n"),
    ([{"type": "text", "text": " "}], "<|im_start|>assistant\n"),
]


@pytest.mark.parametrize(("content", "end"), OPEN_ENDS, ids=[json.dumps(row[0]) for row in OPEN_ENDS])
def test_the_answer_continues_the_assistants_last_message(content, end):
    body = {"messages": [USER, {"role": "assistant", "content": content}]}
    core = saying(" in France.")
    [block] = post(core, body, chat_template=ChatTemplate(TEMPLATE, {}), **THINKS_NOT).json()["content"]
    assert prompt_of(core) == "<|im_start|>user\nhi<|im_end|>\n" + end
    assert block == {"type": "text", "text": " in France."}
    counted = {"messages": body["messages"]}
    template = ChatTemplate(TEMPLATE, {})
    reply = ask(core, "POST", PATH + "/count_tokens", json=counted, served_with={**SETTINGS, "chat_template": template})
    assert reply.json() == {"input_tokens": len(core.streams[0].job.prompt_ids)}


CHOICES = [
    ({**TOOLS}, [CALL, WRONG, "hello"], []),
    ({**TOOLS, "tool_choice": {"type": "any"}}, [CALL, CALL + "\n" + NOW_CALL], ["hello", WRONG]),
    ({**TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}, [CALL], [CALL + "\n" + NOW_CALL]),
    ({**TOOLS, "tool_choice": {"type": "tool", "name": "now"}}, [NOW_CALL], [CALL]),
    ({**TOOLS, "tool_choice": {"type": "none"}}, ["hello"], []),
]


@pytest.mark.parametrize(("body", "good", "bad"), CHOICES, ids=[json.dumps(row[0])[-60:] for row in CHOICES])
def test_what_the_model_may_write(body, good, bad):
    core = saying("ok")
    reply = post(core, body)
    assert reply.status_code == 200, reply.text
    assert [text for text in good if not accepted(core, text)] == []
    assert [text for text in bad if accepted(core, text)] == []


@pytest.mark.parametrize(("kind", "shown"), [("enabled", "True"), ("disabled", "False"), (None, "")])
def test_thinking_reaches_the_template(kind, shown):
    core = saying("ok")
    budget = {"budget_tokens": 1024} if kind == "enabled" else {}
    body = {} if kind is None else {"thinking": {"type": kind, **budget}}
    post(core, body, chat_template=ChatTemplate("[{{ enable_thinking }}]", {}))
    assert prompt_of(core) == f"[{shown}]"


def test_tokens_are_counted():
    reply = ask(FakeCore(), "POST", PATH + "/count_tokens", json={"messages": [USER]}, served_with=SETTINGS)
    assert reply.json() == {"input_tokens": len("user:hi\n")}


def test_tokens_of_what_is_too_long_are_counted():
    long = {"messages": [{"role": "user", "content": "x" * 9000}], "max_tokens": 9000}
    reply = ask(FakeCore(), "POST", PATH + "/count_tokens", json=long, served_with=SETTINGS)
    assert reply.json() == {"input_tokens": len("user:\n") + 9000}


def test_an_answer_of_a_schema():
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {}, "additionalProperties": False}}
    core = saying("{}")
    assert post(core, {"output_config": {"format": form}}).status_code == 200
    assert accepted(core, "{}")
    assert not accepted(core, "hello")


@pytest.mark.parametrize(("source", "shown"), [("{{ reasoning_effort }}", "max"), ("x", "x")])
def test_effort_is_a_hint(source, shown):
    core = saying("ok")
    asked = {"output_config": {"effort": "max"}, "cache_control": {"type": "ephemeral"}}
    assert post(core, asked, chat_template=ChatTemplate(source, {})).status_code == 200
    assert prompt_of(core) == shown


def test_models_are_shown_as_anthropics_clients_read_them():
    asked = {"headers": {"anthropic-version": "2023-06-01"}}
    page = ask(FakeCore(), "GET", "/v1/models", **asked).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "tiny", "alias")
    info = ask(FakeCore(), "GET", "/v1/models/alias", **asked).json()
    assert page["data"][1] == info
    assert info == {
        "type": "model",
        "id": "alias",
        "display_name": "alias",
        "created_at": "2023-11-14T22:13:20Z",
        "max_input_tokens": 200,
        "max_tokens": 200,
    }


USE = {"type": "tool_use", "id": "t", "name": "now", "input": {}}
IMAGE = {"type": "image", "source": {}}
REFUSED = [
    ({"max_tokens": None}, 400, "max_tokens"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, 400, "messages[0].role"),
    ({"system": [{"text": "x"}]}, 400, "system[0].type"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "messages[0].content[0].type"),
    ({"model": "claude"}, 404, "model"),
    ({"stop_sequences": [""]}, 400, "stop_sequences[0]"),
    ({"tools": [NOW, NOW]}, 400, "tools[1].name"),
    ({"tools": [{**NOW, "input_schema": {"type": "x"}}]}, 400, "tools[0].input_schema.type"),
    ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, 400, "tools[0].type"),
    ({**TOOLS, "tool_choice": {"type": "tool"}}, 400, "tool_choice.name"),
    ({**TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, 400, "tool_choice.name"),
    ({**TOOLS, "tool_choice": {"type": "auto", "name": "now"}}, 400, "tool_choice.name"),
    ({**TOOLS, "tool_choice": {"type": "none", "name": "x"}}, 400, "tool_choice.name"),
    ({"thinking": {"type": "enabled", "budget_tokens": -5}}, 400, "thinking.budget_tokens"),
    ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, 400, "thinking.budget_tokens"),
    ({"messages": [USER, {"role": "assistant", "content": [USE]}]}, 400, "messages[1].content[0]"),
    ({"messages": [USER, {"role": "assistant", "content": [SAID[1], SAID[0]]}]}, 400, "messages[1].content[1]"),
    ({"logprobs": True}, 400, "logprobs"),
    ({"prompt_logprobs": 1}, 400, "prompt_logprobs"),
    ({"top_logprobs": 1}, 400, "top_logprobs"),
    ({"nonsense": 1}, 400, "nonsense"),
    ({"thread": {"type": "create"}}, 400, "thread"),
    ({"output_config": {"effort": "some"}}, 400, "output_config.effort"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, 400, "output_config.format"),
]


@pytest.mark.parametrize(("body", "status", "param"), REFUSED, ids=[json.dumps(row[0])[:60] for row in REFUSED])
def test_refusals_are_anthropics_and_name_the_field(body, status, param):
    core = FakeCore()
    reply = post(core, body)
    answer = reply.json()
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    assert (reply.status_code, answer["type"], answer["error"]["type"], core.streams) == (status, "error", kind, [])
    assert answer["error"]["message"].startswith(f"{param}: ")


def test_a_thread_is_refused_in_the_words_that_make_anthropics_sdk_do_without():
    error = post(FakeCore(), {"thread": {"type": "create"}}).json()["error"]
    assert error.pop("details") == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert error.keys() == post(FakeCore(), {"nonsense": 1}).json()["error"].keys() == {"type", "message"}


def test_other_errors_are_anthropics_too():
    core = FakeCore()
    core.refusal = JobError(503, "the queue is full", retry_after_s=2)
    reply = post(core, {})
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "overloaded_error")
    assert told(post(failing("ab"), {"stream": True}))[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "the worker died"},
    }


def test_null_is_as_good_as_left_out():
    nulls = {"container": None, "inference_geo": None, "logprobs": None, "thinking": None, "top_logprobs": None}
    choice = {"type": "auto", "name": None, "disable_parallel_tool_use": None}
    assert post(saying("ok"), {**nulls, **TOOLS, "tool_choice": choice}).status_code == 200


def test_the_usual_template_takes_it():
    assert (
        post(saying("ok"), {"temperature": 0.5, "top_k": 3}, chat_template=ChatTemplate(TEMPLATE, {})).status_code
        == 200
    )


def test_a_calls_half_surrogate_pair_is_a_replacement_character():
    assert input_object(r'{"a": "\ud83d"}') == {"a": "\ufffd"}
