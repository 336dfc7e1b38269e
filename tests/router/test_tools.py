"""Calls of tools, through OpenAI's own client: asked for, held to their schemas, streamed, and shown to the model."""

import json
from typing import Any

import numpy as np
import pytest
from isthmus.router.chat_messages import arguments_object
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import EOS, TOKENIZER, ask, ids, saying, served
from isthmus.tests.router.test_openai import events, with_client
from isthmus.text.chat_template import ChatTemplate
from isthmus.text.grammar_compiler import next_tokens
from isthmus.text.reasoning import ReasoningStyle
from isthmus.text.tool_calls.formats import FORMATS
from isthmus.text.tool_calls.parser import CallParser
from isthmus.text.tool_calls.source import CallBegin

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TEMPLATE = ChatTemplate(
    "{% if tools %}tools:{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ m.tool_call_id }}\n{% endfor %}",
    {},
)
SETTINGS = {"chat_template": TEMPLATE, "call_format": FORMATS["hermes"], "max_model_len": 2000}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Pa\\"ris"}}\n</tool_call>'
TWO = "Let me see.\n" + CALL + '\n<tool_call>{"arguments": {}, "name": "now"}</tool_call>'


def post(core: FakeCore, body: dict[str, Any], **changes: Any) -> Any:
    served_with = {**SETTINGS, **changes}
    return ask(core, "POST", PATH, json={"messages": [USER], "tools": [WEATHER, NOW], **body}, served_with=served_with)


def prompt_of(core: FakeCore) -> str:
    return TOKENIZER.decode(core.streams[0].job.prompt_ids, skip_special_tokens=False)


def test_calls_are_read_by_openais_client():
    async def use(client):
        return await client.chat.completions.create(model="tiny", messages=[USER], tools=[WEATHER, NOW])

    answer = with_client(saying(TWO), use, **SETTINGS)
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    calls = choice.message.tool_calls
    found = [(call.type, call.function.name, call.function.arguments) for call in calls]
    assert found == [("function", "weather", '{"city": "Pa\\"ris"}'), ("function", "now", "{}")]
    assert len({call.id for call in calls}) == 2
    assert answer.usage.completion_tokens == len(ids(TWO)) + 1


@pytest.mark.parametrize("tokens_per_step", [1, 3, 1000])
def test_streamed_calls_are_the_same(tokens_per_step):
    async def use(client):
        asked = {"model": "tiny", "messages": [USER], "tools": [WEATHER, NOW], "n": 2}
        async with client.chat.completions.stream(**asked) as stream:
            async for _ in stream:
                pass
            return await stream.get_final_completion()

    final = with_client(saying(TWO, CALL, tokens_per_step=tokens_per_step), use, **SETTINGS)
    first, second = final.choices
    assert (first.message.content, first.finish_reason) == ("Let me see.", "tool_calls")
    assert [call.function.arguments for call in first.message.tool_calls] == ['{"city": "Pa\\"ris"}', "{}"]
    assert [call.function.name for call in second.message.tool_calls] == ["weather"]


def test_the_deltas_of_a_stream():
    body = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, done = events(post(saying(CALL, tokens_per_step=8), body))
    assert done == "[DONE]"
    assert chunks.pop()["usage"]["completion_tokens"] == len(ids(CALL)) + 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    [first, *rest] = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert first["id"].startswith("call_")
    assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", "weather")
    assert len(rest) > 1
    assert all(call.keys() == {"index", "function"} for call in rest)
    assert "".join(call["function"]["arguments"] for call in [first, *rest]) == '{"city": "Pa\\"ris"}'
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "tool_calls"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_call_is_content(stream):
    text = "<tool_call>{oops}</tool_call> and <tool_"
    reply = post(saying(text), {"stream": stream})
    if stream:
        *chunks, _ = events(reply)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        [choice] = reply.json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
        assert "tool_calls" not in choice["message"]


def test_a_call_that_max_tokens_cuts_is_no_end_by_itself():
    num_tokens = len(ids(CALL[: CALL.index("ris")]))
    [choice] = post(saying(CALL), {"max_tokens": num_tokens}).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Pa\\"'


ENDINGS = [
    (CALL, ["none"], "tool_calls"),
    (CALL, ["ris"], "stop"),
    (TWO, ["now"], "tool_calls"),
    (CALL.replace('"Pa', "?") + TWO, [], "stop"),
]


@pytest.mark.parametrize(("text", "stop", "reason"), ENDINGS)
def test_only_whole_calls_are_an_end_with_calls(text, stop, reason):
    [choice] = post(saying(text), {"stop": stop}).json()["choices"]
    assert choice["message"]["tool_calls"]
    assert choice["finish_reason"] == reason


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_of_all_tokens(stream):
    reply = post(saying(CALL), {"stream": stream, "logprobs": True})
    answers = events(reply)[:-1] if stream else [reply.json()]
    told = [choice["logprobs"] for answer in answers for choice in answer["choices"]]
    tokens = [token["token"] for logprobs in told if logprobs for token in logprobs["content"]]
    assert "".join(tokens) == CALL


def test_the_template_is_told_of_the_tools():
    core = saying("ok")
    post(core, {})
    assert prompt_of(core).startswith(
        'tools:[{"type": "function", "function": {"name": "weather", "description": "Of a'
    )
    core = saying("ok")
    post(core, {"tool_choice": "none"})
    assert prompt_of(core) == "user:hi\n"


def test_earlier_calls_and_their_results_reach_the_template():
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"a": [1]}'}, "index": 0}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    core = saying("ok")
    assert post(core, {"messages": messages, "tools": []}).status_code == 200
    shown = '[{"type": "function", "function": {"name": "now", "arguments": {"a": [1]}}, "id": "c1"}]'
    assert prompt_of(core) == f"user:hi\nassistant:{shown}\ntool:noonc1\n"


UNTOLD = ChatTemplate("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}", {})


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_a_template_without_tools_is_told_in_words(name, system):
    """Earlier calls are written as the model is asked to write them, and would be read."""
    form = FORMATS[name]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *([{"role": "system", "content": "Be brief."}] if system else []),
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "user", "content": "and?"},
    ]
    core = saying("ok")
    assert post(core, {"messages": messages}, chat_template=UNTOLD, call_format=form).status_code == 200
    prompt = prompt_of(core)
    assert prompt.startswith("system:Be brief.\n\nYou can call" if system else "system:You can call")
    assert json.dumps(WEATHER["function"]) in prompt
    _, after = prompt.split("\nuser:hi\nassistant:")
    written, rest = after.split("\nuser:")
    assert rest == "The function's result:\nrain\n\nand?\n"
    parser = CallParser(form.read, {"weather": {}})
    begin, *arguments = [*parser.push(written), *parser.flush()]
    assert begin == CallBegin("weather")
    assert "".join(part.text for part in arguments) == '{"city": "Paris"}'


def test_a_template_without_tools_is_left_alone_where_there_are_none():
    core = saying("ok")
    post(core, {"tools": []}, chat_template=UNTOLD)
    assert prompt_of(core) == "user:hi\n"


CALLED = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
WAYS = [
    ("{{ m.tool_calls[0].function.arguments + '!' }}", '{"a": 1}!'),
    ("{{ m.tool_calls[0].function.arguments.a }}", "1"),
    ("{% if m.content is not none %}said{% endif %}", ""),
    ("{% if m.reasoning_content is not none %}{{ '</think>' in m.content }}{% endif %}", "False"),
    ("{{ m['content'] + '.' }}", "."),
    ("{{ raise_exception('never') }}", None),
]


@pytest.mark.parametrize(("source", "prompt"), WAYS, ids=[row[0] for row in WAYS])
def test_templates_get_calls_in_the_way_they_want_them(source, prompt):
    core = saying("ok")
    template = ChatTemplate("{# tools #}{% for m in messages %}" + source + "{% endfor %}x", {})
    messages = [{"role": "assistant", "content": None, "tool_calls": [CALLED]}]
    reply = post(core, {"messages": messages}, chat_template=template)
    if prompt is None:
        assert (reply.status_code, "never" in reply.json()["error"]["message"]) == (400, True)
    else:
        assert prompt_of(core) == prompt + "x"


def test_arguments_are_shown_as_they_were_made():
    assert arguments_object('{"a": 1}') == {"a": 1}
    assert arguments_object({"a": 1}) == {"a": 1}
    assert arguments_object("") == {}
    assert arguments_object('{"a": ') == '{"a": '
    assert arguments_object("[1]") == "[1]"


def accepted(core: FakeCore, text: str) -> bool:
    """Whether a worker would let the model write `text`."""
    guidance = core.streams[0].job.params.guidance
    if guidance is None:
        return True
    matcher = served().grammars.get(guidance).result().deep_copy()
    for token in [*ids(text), EOS]:
        mask = next_tokens(matcher, TOKENIZER.vocab_size)
        if not np.unpackbits(mask.view(np.uint8), bitorder="little")[token] or not matcher.consume_token(token):
            return False
    return True


NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
WRONG = '<tool_call>\n{"name": "weather", "arguments": {"town": 1}}\n</tool_call>'
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
CHOICES = [
    ({}, [CALL, "hello", WRONG, TWO], []),
    ({"tool_choice": "none"}, ["hello", WRONG], []),
    ({"tool_choice": "required"}, [CALL, CALL + "\n" + NOW_CALL], ["hello", WRONG, ""]),
    ({"tool_choice": "required", "parallel_tool_calls": False}, [CALL], [CALL + "\n" + NOW_CALL]),
    (
        {"tool_choice": {"type": "function", "function": {"name": "now"}}},
        [NOW_CALL],
        [CALL, NOW_CALL + "\n" + NOW_CALL],
    ),
    ({"parallel_tool_calls": False}, ["hello", "a" + CALL, WRONG], [CALL + CALL]),
    ({"tools": [STRICT, NOW]}, ["hello", "a" + CALL + CALL, NOW_CALL], [WRONG]),
    ({"response_format": {"type": "json_object"}}, ['{"a": 1}', CALL], ["hello"]),
    ({"tools": [], "response_format": {"type": "json_object"}}, ['{"a": 1}'], [CALL, "hello"]),
]


@pytest.mark.parametrize(("body", "good", "bad"), CHOICES, ids=[json.dumps(row[0])[:60] for row in CHOICES])
def test_what_the_model_may_write(body, good, bad):
    core = saying("ok")
    reply = post(core, body)
    assert reply.status_code == 200, reply.text
    assert [text for text in good if not accepted(core, text)] == []
    assert [text for text in bad if accepted(core, text)] == []


@pytest.mark.parametrize("skip", [True, False])
def test_markers_that_are_special_tokens_are_shown_to_the_reader_alone(skip):
    """Here a thought ends with a special token; another one stays hidden, unless asked for."""
    style = ReasoningStyle("special", "<think>", "<|im_start|>", always=True)
    text = "Hm.<|im_start|>Yes.<|bos|>"
    core = FakeCore(lambda job, choice: iter([*ids(text), EOS]))
    [choice] = post(core, {"skip_special_tokens": skip}, reasoning=style).json()["choices"]
    assert choice["message"]["reasoning_content"] == "Hm."
    assert choice["message"]["content"] == ("Yes." if skip else "Yes.<|bos|>")


def function(**fields: Any) -> dict[str, Any]:
    return {"tools": [NOW, {"type": "function", "function": {"name": "f", **fields}}]}


def parameters(schema: Any) -> dict[str, Any]:
    return function(parameters=schema)


def allowing(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


ALLOWED = allowing("required", "now")
REFUSED = [
    ({"tools": {}}, "tools"),
    ({"tools": [NOW, {"type": "function"}]}, "tools[1].function"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    (function(name="a b"), "tools[1].function.name"),
    (function(name="now"), "tools[1].function.name"),
    (function(extra=1), "tools[1].function.extra"),
    (function(strict="yes"), "tools[1].function.strict"),
    (parameters([]), "tools[1].function.parameters"),
    (parameters({"type": "array"}), "tools[1].function.parameters.type"),
    (parameters({"type": "thing"}), "tools[1].function.parameters.type"),
    (parameters({"required": "a"}), "tools[1].function.parameters.required"),
    (parameters({"properties": []}), "tools[1].function.parameters.properties"),
    (parameters({"properties": {"a": 5}}), "tools[1].function.parameters.properties.a"),
    (parameters({"properties": {"a": {"type": ["string", "int"]}}}), "tools[1].function.parameters.properties.a.type"),
    (parameters({"properties": {"a": {"enum": "x"}}}), "tools[1].function.parameters.properties.a.enum"),
    (parameters({"properties": {"a": {"items": 1}}}), "tools[1].function.parameters.properties.a.items"),
    (parameters({"anyOf": [{}, 1]}), "tools[1].function.parameters.anyOf[1]"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice.function.name"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "required", **parameters({"properties": {"a": {"not": {"type": "null"}}}})}, "tools"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
    ({"tool_choice": {**ALLOWED, "function": {"name": "now"}}}, "tool_choice.function"),
    ({"tool_choice": allowing("auto")}, "tool_choice.allowed_tools.tools"),
    ({"tool_choice": allowing("none", "now")}, "tool_choice.allowed_tools.mode"),
    ({"tool_choice": allowing("auto", "now", "x")}, "tool_choice.allowed_tools.tools[1].function.name"),
    ({"tools": [], "tool_choice": ALLOWED}, "tool_choice"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls[0].function"),
    ({"messages": [{**USER, "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0].type"),
]


def guidance_of(core: FakeCore) -> str:
    guidance = core.streams[0].job.params.guidance
    return "" if guidance is None else guidance.spec


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_of_the_tools_it_is_told_of_only_allowed_ones_can_be_called(mode):
    core = saying("x")
    assert post(core, {"tool_choice": allowing(mode, "now")}).status_code == 200
    assert '"weather"' in prompt_of(core)
    assert "now" in guidance_of(core)
    assert "weather" not in guidance_of(core)
    both = saying("x")
    assert post(both, {"tool_choice": allowing(mode, "weather", "now")}).status_code == 200
    assert ("weather" in guidance_of(both)) == (mode == "required"), "all are allowed: nothing to hold it to"


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=[json.dumps(row[0])[:70] for row in REFUSED])
def test_refusals_name_the_field(body, param):
    core = FakeCore()
    error = post(core, body).json()["error"]
    assert (error["param"], core.streams) == (param, [])
    assert error["message"].startswith(param)


def test_a_model_that_knows_no_calls_refuses_tools():
    reply = post(FakeCore(), {}, call_format=None)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")
    assert "--tool-call-parser" in reply.json()["error"]["message"]
    assert post(saying("ok"), {"tool_choice": "none"}, call_format=None).status_code == 200
