"""Ollama's routes: their lines, and the chats and completions that their bodies mean."""

import json
from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import EOS, TOKENIZER, ask, byte_tokenizer, ids, saying
from isthmus.tests.router.test_openai import failing
from isthmus.tests.router.test_reasoning import SETTINGS as THINK
from isthmus.tests.router.test_tools import CALL, NOW, SETTINGS, WEATHER, guidance_of, prompt_of

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}}
USER = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [USER]}
PROMPT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}


def post(core: FakeCore, path: str, body: dict[str, Any], **changes: Any) -> Any:
    return ask(core, "POST", f"/api/{path}", json=body, served_with=changes)


def lines(reply: Any) -> list[Any]:
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.text.endswith("\n")
    return [json.loads(line) for line in reply.text.splitlines()]


def test_a_chat_streams_unless_told_otherwise():
    *said, last = lines(post(saying("x€"), "chat", CHAT))
    assert "".join(line["message"]["content"] for line in said) == "x€"
    assert {line["done"] for line in said} == {False}
    assert (last["done"], last["done_reason"], last["message"]) == (True, "stop", {"role": "assistant", "content": ""})
    assert last["eval_count"] == len(ids("x€")) + 1
    assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"]
    whole = post(saying("x€"), "chat", {**CHAT, "stream": False}).json()
    assert whole["message"] == {"role": "assistant", "content": "x€"}
    assert (whole["model"], whole["done"], whole["prompt_eval_count"]) == ("tiny", True, last["prompt_eval_count"])


def test_a_prompt_is_answered_as_a_chat_or_as_it_is():
    core = saying("ok")
    assert post(core, "generate", {**PROMPT, "system": "S", "stream": False}).json()["response"] == "ok"
    chat = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(core.streams[0].job.prompt_ids, skip_special_tokens=False) == chat
    assert core.streams[0].job.params.max_tokens == 200 - len(ids(chat))
    for more, changes in (({"raw": True}, {}), ({}, {"chat_template": None})):
        core = saying("ok")
        *said, last = lines(post(core, "generate", {**PROMPT, **more}, tokenizer=byte_tokenizer(bos=True), **changes))
        assert core.streams[0].job.prompt_ids == [256, *ids("hi")]
        assert "".join(line["response"] for line in said) == "ok"
        assert (last["response"], last["done_reason"]) == ("", "stop")


def test_options_are_sampling_parameters_and_hardware_is_ours():
    core = saying("abSTOP")
    options = {"temperature": 0.5, "num_predict": 9, "repeat_penalty": 1.2, "seed": 4, "stop": ["STOP"], "num_gpu": 99}
    reply = post(core, "chat", {**CHAT, "options": {**options, "num_ctx": 4096}, "keep_alive": "5m", "stream": False})
    assert (reply.json()["message"]["content"], reply.json()["done_reason"]) == ("ab", "stop")
    params = core.streams[0].job.params
    assert (params.temperature, params.max_tokens, params.repetition_penalty, params.seed) == (0.5, 9, 1.2, 4)


@pytest.mark.parametrize("count", [-1, -2])
def test_no_limit_is_what_there_is_room_for(count):
    core = saying("ok")
    assert post(core, "generate", {**PROMPT, "raw": True, "options": {"num_predict": count}}).status_code == 200
    assert core.streams[0].job.params.max_tokens == 198


def test_a_length_is_told():
    assert lines(post(saying("abcdef"), "chat", {**CHAT, "options": {"num_predict": 3}}))[-1]["done_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_whole_with_objects_for_arguments(stream):
    body = {**CHAT, "tools": [WEATHER, NOW], "stream": stream}
    reply = post(saying(CALL, tokens_per_step=4), "chat", body, **SETTINGS)
    answers = lines(reply) if stream else [reply.json()]
    calls = [call for answer in answers for call in answer["message"].get("tool_calls", ())]
    assert calls == [{"function": {"name": "weather", "arguments": {"city": 'Pa"ris'}}}]
    assert "".join(answer["message"]["content"] for answer in answers) == ""


def test_calls_and_results_of_a_conversation_reach_the_template():
    core = saying("ok")
    call = {"function": {"name": "now", "arguments": {}}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "now", "content": "noon"},
    ]
    assert post(core, "chat", {**CHAT, "messages": messages}, **SETTINGS).status_code == 200
    assert '"name": "now"' in prompt_of(core)
    assert "tool:noon" in prompt_of(core)


@pytest.mark.parametrize("path", ["chat", "generate"])
def test_thoughts_come_apart(path):
    body = CHAT if path == "chat" else PROMPT
    reply = post(saying("<think>hm</think>ok"), path, {**body, "think": True, "stream": False}, **THINK).json()
    told = reply["message"] if path == "chat" else {**reply, "content": reply["response"]}
    assert (told["thinking"], told["content"]) == ("hm", "ok")


def test_format_constrains_the_answer():
    of_openai = ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "n", "schema": POINT}}, None)
    for form, openai in zip(("json", POINT, ""), of_openai, strict=True):
        cores = saying("{}"), saying("{}")
        assert post(cores[0], "chat", {**CHAT, "format": form}).status_code == 200
        body = {**CHAT, "response_format": openai}
        assert ask(cores[1], "POST", "/v1/chat/completions", json=body).status_code == 200
        assert guidance_of(cores[0]) == guidance_of(cores[1])
        assert bool(guidance_of(cores[0])) == bool(form)


REFUSED = [
    ("chat", {}, "messages"),
    ("chat", {**CHAT, "messages": []}, "messages"),
    ("chat", {**CHAT, "messages": [{**USER, "images": ["aGk="]}]}, "messages[0].images"),
    ("chat", {**CHAT, "messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
    ("chat", {**CHAT, "tools": [NOW]}, "tools"),
    ("chat", {**CHAT, "think": "high"}, "think"),
    ("chat", {**CHAT, "options": {"logprobs": True}}, "options.logprobs"),
    ("generate", {"prompt": "x", "options": {"prompt_logprobs": 2}}, "options.prompt_logprobs"),
    ("chat", {**CHAT, "format": "xml"}, "format"),
    ("chat", {**CHAT, "format": {"type": "thing"}}, "format"),
    ("chat", {**CHAT, "options": {"temperature": -1}}, "options.temperature"),
    ("chat", {**CHAT, "options": {"num_predict": 500}}, "options.num_predict"),
    ("chat", {**CHAT, "options": {"heat": 1}}, "options.heat"),
    ("chat", {**CHAT, "n": 2}, "n"),
    ("chat", {**CHAT, "n": None}, "n"),
    ("generate", {}, "prompt"),
    ("generate", {"prompt": ""}, "prompt"),
    ("generate", {"prompt": "x" * 300}, "prompt"),
    ("generate", {**PROMPT, "suffix": "x"}, "suffix"),
    ("generate", {**PROMPT, "context": [1]}, "context"),
    ("generate", {**PROMPT, "raw": True, "options": {"top_p": 2}}, "options.top_p"),
    ("generate", {**PROMPT, "raw": True, "think": True}, "think"),
    ("generate", {**PROMPT, "model": "other"}, "model"),
    ("show", {"model": "other"}, "model"),
    ("show", {"n": None}, "n"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED, ids=[f"{row[0]} {row[2]}" for row in REFUSED])
def test_a_refusal_is_a_sentence_that_begins_with_the_field(path, body, param):
    core = FakeCore()
    reply = post(core, path, body)
    assert reply.status_code == (404 if param == "model" else 400)
    assert reply.json().keys() == {"error"}
    assert reply.json()["error"].startswith(f"{param}: ")
    assert core.streams == []


def test_an_error_after_the_first_token_is_the_last_line():
    assert lines(post(failing("ab"), "chat", CHAT))[-1] == {"error": "the worker died"}


@pytest.mark.parametrize("name", ["tiny", "alias:latest", None])
def test_the_model_is_listed_and_shown(name):
    [entry, alias] = ask(FakeCore(), "GET", "/api/tags").json()["models"]
    assert (entry["name"], entry["model"], alias["name"]) == ("tiny", "tiny", "alias")
    assert len({entry["digest"], alias["digest"]}) == 2
    shown = post(FakeCore(), "show", {"model": name}).json()
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] == 200
    assert shown["capabilities"] == ["completion"]
    assert "im_start" in shown["template"]
    able = post(FakeCore(), "show", {"name": name}, **SETTINGS, reasoning=THINK["reasoning"]).json()
    assert able["capabilities"] == ["completion", "tools", "thinking"]
    assert post(saying("ok"), "chat", {**CHAT, "model": name}).status_code == 200
    assert ask(FakeCore(), "GET", "/api/version").json()["version"].count(".") == 2


def test_end_of_sequence_counts_as_it_does_elsewhere():
    core = FakeCore(lambda job, choice: iter([*ids("a"), EOS]))
    assert post(core, "chat", {**CHAT, "stream": False}).json()["eval_count"] == 2
