"""What a model thinks, apart from its answer: in messages, in deltas, and under the grammars that clients ask for."""

from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.server import load_served
from isthmus.tests.router.edge import TEMPLATE, TOKENIZER, ask, ids, saying
from isthmus.tests.router.test_openai import events, with_client
from isthmus.tests.router.test_tools import CALL, WEATHER, accepted
from isthmus.text.chat_template import ChatTemplate
from isthmus.text.reasoning import STYLES
from isthmus.text.tool_calls.formats import FORMATS

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
THINKS = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
OPENING = ChatTemplate(TEMPLATE + THINKS, {})
SETTINGS = {"reasoning": STYLES["qwen3"], "call_format": FORMATS["hermes"], "max_model_len": 2000}
THOUGHT = "Hm,\nwell.\n</think>\n\n"


def post(core: FakeCore, body: dict[str, Any], **changes: Any) -> Any:
    return ask(core, "POST", PATH, json={"messages": [USER], **body}, served_with={**SETTINGS, **changes})


TEXTS = [
    ({}, "<think>\n" + THOUGHT + "Yes.", None, "Hm,\nwell.", "Yes."),
    ({}, THOUGHT + "Yes.", OPENING, "Hm,\nwell.", "Yes."),
    ({}, "Yes.", None, None, "Yes."),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "Yes.", OPENING, None, "Yes."),
    ({"include_reasoning": False}, THOUGHT + "Yes.", OPENING, None, "Yes."),
    ({}, "Hm, and no end", OPENING, "Hm, and no end", ""),
]


@pytest.mark.parametrize(("body", "text", "template", "reasoning", "answer"), TEXTS)
@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_apart(body, text, template, reasoning, answer, stream):
    changes = {} if template is None else {"chat_template": template}
    reply = post(saying(text, tokens_per_step=3), {"stream": stream, **body}, **changes)
    if not stream:
        message = reply.json()["choices"][0]["message"]
        assert (message.get("reasoning_content"), message["content"]) == (reasoning, answer)
        assert message.get("reasoning") == reasoning
        assert reply.json()["usage"]["completion_tokens"] == len(ids(text)) + 1
        return
    deltas = [chunk["choices"][0]["delta"] for chunk in events(reply)[:-1]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (reasoning or "")
    assert "".join(delta.get("content", "") for delta in deltas) == answer
    assert all(delta.get("reasoning") == delta.get("reasoning_content") for delta in deltas)


CONTINUED = [
    ("Paris is", " in France.", None, " in France."),
    ("<think>Hm", ", well.</think>Yes.", ", well.", "Yes."),
    ("<think>Hm</think>Yes", ", it is.", None, ", it is."),
]


@pytest.mark.parametrize(("said", "text", "reasoning", "answer"), CONTINUED)
@pytest.mark.parametrize("style", ["qwen3", "deepseek_r1"])
def test_a_message_that_is_continued_says_whether_it_is_still_a_thought(style, said, text, reasoning, answer):
    body = {"continue_final_message": True, "add_generation_prompt": False}
    messages = [USER, {"role": "assistant", "content": said}]
    reply = post(saying(text), {**body, "messages": messages}, reasoning=STYLES[style])
    message = reply.json()["choices"][0]["message"]
    assert (message.get("reasoning_content"), message["content"]) == (reasoning, answer)


def test_a_thought_and_then_calls():
    async def use(client):
        return await client.chat.completions.create(model="tiny", messages=[USER], tools=[WEATHER])

    text = "Maybe " + CALL + "?</think>" + CALL
    [choice] = with_client(saying(text), use, chat_template=OPENING, **SETTINGS).choices
    assert choice.message.reasoning_content == "Maybe " + CALL + "?"
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]


GRAMMARS = [
    ({"response_format": {"type": "json_object"}}, [THOUGHT + "{}"], ["{}", THOUGHT + "Yes."]),
    ({"tools": [WEATHER], "tool_choice": "required"}, [THOUGHT + CALL], [CALL, THOUGHT + "Yes."]),
    ({"guided_choice": ["a", "b"]}, [THOUGHT + "a"], ["a", THOUGHT + "c"]),
    ({"guided_choice": ["a"], "chat_template_kwargs": {"enable_thinking": False}}, ["a"], [THOUGHT + "a"]),
]


@pytest.mark.parametrize(("body", "good", "bad"), GRAMMARS)
def test_grammars_begin_after_the_thought(body, good, bad):
    core = saying("ok")
    assert post(core, body, chat_template=OPENING).status_code == 200
    assert [text for text in good if not accepted(core, text)] == []
    assert [text for text in bad if accepted(core, text)] == []


KNOWS = ChatTemplate("[{{ reasoning_effort }}]", {})
EFFORTS = [
    ("low", KNOWS, "[low]"),
    ("none", KNOWS, "[none]"),
    ("none", ChatTemplate("[{{ enable_thinking }}]", {}), "[False]"),
    ("none", ChatTemplate("[]", {}), None),
    ("low", ChatTemplate("[]", {}), None),
    ("none", ChatTemplate("<think>", {}), None),
]


@pytest.mark.parametrize(("effort", "template", "prompt"), EFFORTS)
def test_an_effort_reaches_a_template_that_knows_it(effort, template, prompt):
    for path, body in [
        (PATH, {"messages": [USER], "reasoning_effort": effort}),
        ("/v1/responses", {"input": "hi", "reasoning": {"effort": effort}}),
    ]:
        core = saying("ok")
        reply = ask(core, "POST", path, json=body, served_with={**SETTINGS, "chat_template": template})
        if prompt is None:
            param = "reasoning_effort" if path == PATH else "reasoning.effort"
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        else:
            assert list(core.streams[0].job.prompt_ids) == ids(prompt)


def test_a_model_that_never_thinks_need_not_be_told_not_to():
    changes = {"chat_template": ChatTemplate("[]", {})}
    assert post(saying("ok"), {"reasoning_effort": "none"}, **changes, reasoning=None).status_code == 200


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_earlier_thoughts_reach_the_template(name):
    core = saying("ok")
    template = ChatTemplate("{% for m in messages %}[{{ m.reasoning_content }}]{% endfor %}", {})
    post(core, {"messages": [{"role": "assistant", "content": "x", name: "Hm."}]}, chat_template=template)
    assert list(core.streams[0].job.prompt_ids) == ids("[Hm.]")


def test_an_empty_effort_is_as_good_as_left_out():
    assert post(saying("ok"), {"reasoning_effort": ""}).status_code == 200


def test_a_server_tells_formats_by_the_template(tmp_path):
    template = "{{ '<tool_call><think>' }}"
    TOKENIZER._backend.save(str(tmp_path / "tokenizer.json"))
    told = load_served(tmp_path, ("m",), 100, template)
    assert (told.call_format, told.reasoning) == (FORMATS["hermes"], STYLES["qwen3"])
    plain = load_served(tmp_path, ("m",), 100, template, tool_call_parser="none", reasoning_parser="none")
    assert (plain.call_format, plain.reasoning) == (None, None)
    untold = load_served(tmp_path, ("m",), 100, TEMPLATE)
    assert (untold.call_format, untold.reasoning) == (FORMATS["hermes"], None)
    unknown = load_served(tmp_path, ("m",), 100, "{{ tools }}")
    assert unknown.call_format is None
    other = load_served(tmp_path, ("m",), 100, template, tool_call_parser="mistral", reasoning_parser="granite")
    assert (other.call_format, other.reasoning) == (FORMATS["mistral"], STYLES["granite"])
