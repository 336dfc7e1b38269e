"""OpenAI's older form of tools: functions, function_call, messages of the role "function". And the role developer."""

import json
from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import saying
from isthmus.tests.router.test_openai import events, with_client
from isthmus.tests.router.test_tools import CALL, SETTINGS, TWO, USER, guidance_of, post, prompt_of
from isthmus.text.chat_template import ChatTemplate

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
NOW = {"name": "now"}
OLDER: dict[str, Any] = {"tools": None, "functions": [WEATHER, NOW]}
MESSAGES = ChatTemplate("{# with tools #}{% for m in messages %}{{ m | tojson }}\n{% endfor %}", {})


def test_openais_client_reads_the_call_in_the_form_it_asked_in():
    async def use(client):
        return await client.chat.completions.create(model="tiny", messages=[USER], functions=[WEATHER, NOW])

    [choice] = with_client(saying(CALL), use, **SETTINGS).choices
    assert (choice.finish_reason, choice.message.content) == ("function_call", None)
    assert choice.message.tool_calls is None
    call = choice.message.function_call
    assert (call.name, call.arguments) == ("weather", '{"city": "Pa\\"ris"}')


def test_a_stream_tells_name_and_arguments():
    *chunks, _ = events(post(saying(CALL, tokens_per_step=8), {**OLDER, "stream": True}))
    calls = [call for chunk in chunks if (call := chunk["choices"][0]["delta"].get("function_call"))]
    assert [call.get("name") for call in calls] == ["weather", *[None] * (len(calls) - 1)]
    assert "".join(call["arguments"] for call in calls) == '{"city": "Pa\\"ris"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_the_model_is_told_of_functions_as_tools_and_calls_once():
    core = saying("ok")
    reply = post(core, OLDER)
    assert reply.json()["choices"][0]["message"] == {"role": "assistant", "content": "ok", "refusal": None}
    told = [{"type": "function", "function": function} for function in (WEATHER, NOW)]
    newer = saying("ok")
    assert post(newer, {"tools": told, "parallel_tool_calls": False}).status_code == 200
    assert prompt_of(core) == prompt_of(newer)
    assert guidance_of(core) == guidance_of(newer) != ""


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"function_call": "none"}, {"tool_choice": "none"}),
        ({"function_call": "auto"}, {"tool_choice": "auto"}),
        ({"function_call": {"name": "now"}}, {"tool_choice": {"type": "function", "function": {"name": "now"}}}),
    ],
)
def test_function_call_chooses_as_tool_choice_does(older, newer):
    cores = saying("ok"), saying("ok")
    told = [{"type": "function", "function": function} for function in (WEATHER, NOW)]
    assert post(cores[0], {**OLDER, **older}).status_code == 200
    assert post(cores[1], {"tools": told, "parallel_tool_calls": False, **newer}).status_code == 200
    assert prompt_of(cores[0]) == prompt_of(cores[1])
    assert guidance_of(cores[0]) == guidance_of(cores[1])


def test_calls_and_results_in_a_conversation_become_those_of_tools():
    core = saying("ok")
    messages = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": "{}"}},
        {"role": "function", "name": "now", "content": "noon"},
        {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "x"}'}},
        {"role": "function", "name": "weather", "content": "rain"},
    ]
    assert post(core, {"tools": [], "messages": messages}, chat_template=MESSAGES).status_code == 200
    _, call, result, second, last = (json.loads(line) for line in prompt_of(core).splitlines())
    assert call["tool_calls"][0] == {
        "id": "fcall0001", "type": "function", "function": {"name": "now", "arguments": {}},
    }  # fmt: skip
    assert "function_call" not in call
    assert result == {"role": "tool", "name": "now", "content": "noon", "tool_call_id": "fcall0001"}
    assert second["tool_calls"][0]["id"] == last["tool_call_id"] == "fcall0002"


REFUSED = [
    ({"functions": [{"name": "f"}]}, "tools"),
    ({**OLDER, "tool_choice": "none"}, "tool_choice"),
    ({"tools": [], "function_call": {"name": "f"}}, "function_call"),
    ({**OLDER, "function_call": {"name": "f"}}, "function_call.name"),
    ({**OLDER, "function_call": "required"}, "function_call"),
    ({**OLDER, "functions": [NOW, NOW]}, "functions[1].name"),
    ({**OLDER, "functions": [{"name": "f", "parameters": {"type": "array"}}]}, "functions[0].parameters.type"),
    ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call.name"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=[json.dumps(row[0])[:70] for row in REFUSED])
def test_refusals_name_the_older_field(body, param):
    error = post(FakeCore(), body).json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(param)


@pytest.mark.parametrize(("source", "role"), [("", "system"), ("{# developer #}", "developer")])
def test_developers_are_the_system_where_a_template_does_not_know_them(source, role):
    core = saying("ok")
    messages = [{"role": "developer", "content": "Be brief."}, USER]
    template = ChatTemplate(source + MESSAGES.source, {})
    assert post(core, {"tools": [], "messages": messages}, chat_template=template).status_code == 200
    assert json.loads(prompt_of(core).splitlines()[0]) == {"role": role, "content": "Be brief."}


def test_two_calls_in_one_answer_are_not_shown_as_one():
    reply = post(saying(TWO), OLDER).json()["choices"][0]
    assert reply["message"]["function_call"] == {"name": "weather", "arguments": '{"city": "Pa\\"ris"}'}
