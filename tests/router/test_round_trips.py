"""What clients make of our answers can be sent back: as their own objects, and as those say themselves as dicts."""

import json
from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import TOKENIZER, ask, saying
from isthmus.tests.router.test_openai import with_client
from isthmus.tests.router.test_tools import CALL, SETTINGS
from isthmus.text.chat_template import ChatTemplate
from isthmus.text.reasoning import STYLES
from openai.lib._tools import pydantic_function_tool
from pydantic import BaseModel

USER: Any = {"role": "user", "content": "hi"}
AGAIN: Any = {"role": "user", "content": "and?"}
SHOWS_ALL = ChatTemplate("{# tools #}{% for m in messages %}{{ m | tojson }}\n{% endfor %}{{ tools | tojson }}", {})
SERVED = {**SETTINGS, "chat_template": SHOWS_ALL, "reasoning": STYLES["deepseek_r1"]}
TEXT = 'Hm.</think>{"city": "Paris"}'
CALLED = "Hm.</think>Let me see.\n" + CALL


class weather(BaseModel):
    city: str


def shown(core: FakeCore) -> list[dict[str, Any]]:
    """The messages that the template was given."""
    *lines, _ = TOKENIZER.decode(core.streams[-1].job.prompt_ids, skip_special_tokens=False).splitlines()
    return [json.loads(line) for line in lines]


WAYS = {"objects": lambda one: one, "dicts": lambda one: one.model_dump(warnings=False)}
EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's, of what it has parsed itself
@EACH_WAY
@pytest.mark.parametrize("text", [TEXT, CALLED], ids=["text", "call"])
def test_a_parsed_message(text: str, way: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "response_format": weather} if text is TEXT else {"model": "tiny"}
    if text is CALLED:
        asked["tools"] = [pydantic_function_tool(weather)]

    async def use(client: Any) -> Any:
        first = await client.chat.completions.parse(messages=[USER], **asked)
        said = first.choices[0].message
        await client.chat.completions.create(model="tiny", messages=[USER, way(said), AGAIN])
        return said

    core = saying(text)
    said = with_client(core, use, **SERVED)
    [call] = said.tool_calls or [None]
    assert (said.parsed if call is None else call.function.parsed_arguments).city.startswith("Pa")
    _, assistant, _ = shown(core)
    calls = {"tool_calls": [{"type": "function", "id": call.id, "function": NAMED}]} if call is not None else {}
    thought = {"reasoning_content": "Hm.", "thinking": "Hm."}  # the second name is transformers' doing
    assert assistant == {"role": "assistant", "content": said.content, **thought, **calls}


NAMED = {"name": "weather", "arguments": {"city": 'Pa"ris'}}


@EACH_WAY
@pytest.mark.parametrize("text", [TEXT, CALLED], ids=["text", "call"])
def test_a_parsed_response(text: str, way: Any) -> None:
    async def use(client: Any) -> Any:
        tools = [{"type": "function", **pydantic_function_tool(weather)["function"]}]
        asked = {"text_format": weather} if text is TEXT else {"tools": tools}
        first = await client.responses.parse(model="tiny", input=[USER], **asked)
        await client.responses.create(model="tiny", input=[USER, *map(way, first.output), AGAIN])
        return first

    core = saying(text)
    first = with_client(core, use, **SERVED)
    if text is TEXT:
        assert first.output_parsed == weather(city="Paris")
    else:
        assert first.output[-1].parsed_arguments == {"city": 'Pa"ris'}
    _, assistant, _ = shown(core)
    assert assistant["reasoning_content"] == "Hm."
    assert assistant["content"] == ('{"city": "Paris"}' if text is TEXT else "Let me see.")
    assert [call["function"] for call in assistant.get("tool_calls", [])] == ([] if text is TEXT else [NAMED])


ANTHROPIC = [
    {"type": "thinking", "thinking": "Hm.", "signature": ""},
    {"type": "thinking", "thinking": "Hm.", "signature": None},
    {"type": "text", "text": "a", "citations": None},
    {"type": "text", "text": "a", "citations": None, "parsed_output": {"city": "Paris"}},
    {"type": "tool_use", "id": "t", "name": "now", "input": {}, "caller": None, "toolset_name": None},
    {"type": "tool_use", "id": "t", "name": "now", "input": {}, "caller": {"type": "direct"}, "toolset_name": None},
]
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": None, "is_error": None, "toolset_name": None}


@pytest.mark.parametrize("block", ANTHROPIC, ids=json.dumps)
def test_blocks_as_anthropics_sdk_says_them(block: dict[str, Any]) -> None:
    core, plain = saying("ok"), saying("ok")
    dumped = {key: value for key, value in block.items() if value is not None}
    extra = {"parsed_output", "caller"}
    for made, sent in ((core, block), (plain, {key: dumped[key] for key in dumped.keys() - extra})):
        messages = [USER, {"role": "assistant", "content": [sent]}, {"role": "user", "content": [RESULT]}]
        reply = ask(made, "POST", "/v1/messages", json={"messages": messages, "max_tokens": 9}, served_with=SERVED)
        assert reply.status_code == 200, reply.text
    assert shown(core) == shown(plain)


DIRECT = {"type": "direct"}
OPENAI = [
    {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}", "async": None, "async_": None},
    {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}", "caller": DIRECT, "namespace": None},
    {"type": "function_call_output", "call_id": "c", "output": "x", "caller": None, "created_by": None, "name": None},
    {"type": "function_call_output", "call_id": "c", "output": "x", "caller": DIRECT, "namespace": None, "id": None},
    {"type": "reasoning", "id": "r", "summary": None, "content": None, "encrypted_content": None, "status": None},
    {"type": "message", "role": "assistant", "content": "x", "id": "m", "status": "completed", "phase": None},
]


@pytest.mark.parametrize("item", OPENAI, ids=json.dumps)
def test_items_as_openais_sdk_says_them(item: dict[str, Any]) -> None:
    reply = ask(saying("ok"), "POST", "/v1/responses", json={"input": [USER, item, AGAIN]}, served_with=SERVED)
    assert reply.status_code == 200, reply.text


MADE = {"message": {"parsed": {"a": 1}}, "cache": {"cache_control": {"type": "ephemeral"}}}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_additions_to_a_message_do_not_reach_the_template(made: dict[str, Any]) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": None, "parsed_arguments": {"a": 1}}}
    messages = [{**USER, **made}, {"role": "assistant", "content": "x", "tool_calls": [call], **made}]
    core = saying("ok")
    reply = ask(core, "POST", "/v1/chat/completions", json={"messages": messages}, served_with=SERVED)
    assert reply.status_code == 200, reply.text
    plain = {"type": "function", "id": "c", "function": {"name": "now", "arguments": {}}}
    assert shown(core) == [USER, {"role": "assistant", "content": "x", "tool_calls": [plain]}]


def test_hints_to_a_cache_are_taken_wherever_litellm_puts_them() -> None:
    hint = {"cache_control": {"type": "ephemeral"}}
    tool = {"type": "function", "function": {"name": "now"}}
    prompts = []
    for more in ({}, hint):
        message = {"role": "system", "content": [{"type": "text", "text": "Be brief.", **more}], **more}
        core = saying("ok")
        body = {"messages": [message, USER], "tools": [{**tool, **more}]}
        reply = ask(core, "POST", "/v1/chat/completions", json=body, served_with=SERVED)
        assert reply.status_code == 200, reply.text
        prompts.append(core.streams[0].job.prompt_ids)
    assert prompts[0] == prompts[1]
