"""Kobold's fields on OpenAI's routes, as Lite's instruct mode sends them: meant as on Kobold's own."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from isthmus.router.access import Access
from isthmus.router.api_keys import Limits, make_key
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import TOKENIZER, ask, http_client, run, saying, served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
ROUTES = {CHAT: HI, TEXT: {"prompt": "hi"}}
ASKED = "<|im_start|>user\nhi<|im_end|>\n"
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def text_of(choice: dict[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice["message"]["content"]


def answered(core: FakeCore, path: str, body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The first choice."""
    reply = ask(core, "POST", path, json={**ROUTES[path], **body}, served_with=changes)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def prompt_of(path: str, body: dict[str, Any], **changes: Any) -> str:
    core = saying("ok")
    answered(core, path, body, **changes)
    return TOKENIZER.decode(core.streams[0].job.prompt_ids, skip_special_tokens=False)


def refused(path: str, body: dict[str, Any], **changes: Any) -> tuple[int, str]:
    reply = ask(FakeCore(), "POST", path, json={**ROUTES[path], **body}, served_with=changes)
    return reply.status_code, reply.json()["error"]["param"]


def said(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"messages": [*HI["messages"], {"role": role, "content": content, **more}]}


@pytest.mark.parametrize(
    ("body", "end"),
    [
        (HI, "<|im_start|>assistant\n"),
        (said("assistant", "It is "), "<|im_start|>assistant\nIt is "),
        (said("tool", "4", tool_call_id="1"), "<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"),
        (said("assistant", None, tool_calls=CALLS), "<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_last_message_is_continued_where_it_is_the_assistants(body: dict[str, Any], end: str) -> None:
    assert prompt_of(CHAT, {**body, "continue_assistant_turn": True}).endswith(end)
    assert prompt_of(CHAT, body).endswith("<|im_start|>assistant\n")


def test_a_turn_is_not_continued_and_begun() -> None:
    body = {**said("assistant", "It"), "continue_assistant_turn": True, "add_generation_prompt": True}
    assert refused(CHAT, body) == (400, "continue_assistant_turn")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "ab"),
        ({"trim_stop": True}, "ab"),
        ({"trim_stop": False}, "abEND"),
        ({"trim_stop": False, "include_stop_str_in_output": False}, "abEND"),
        ({"trim_stop": True, "include_stop_str_in_output": True}, "abEND"),
        ({"render_special": True}, "a<|im_start|>b"),
        ({"render_special": False, "skip_special_tokens": False}, "a<|im_start|>b"),
    ],
)
def test_what_the_text_shows(path: str, fields: dict[str, Any], text: str) -> None:
    choice = answered(saying("a<|im_start|>bENDcd"), path, {"stop_sequence": ["END"], **fields})
    assert (text_of(choice), choice["finish_reason"]) == (text, "stop")


@pytest.mark.parametrize("path", ROUTES)
def test_the_end_of_sequence_is_bypassed(path: str) -> None:
    for fields in ({"bypass_eos": True}, {"bypass_eos": True, "use_default_badwordsids": False}):
        core = saying("ok")
        answered(core, path, {**fields, "max_length": 3})
        assert core.streams[0].job.params.ignore_eos is True


def test_placeholders_are_filled_in() -> None:
    stops = {"replace_instruct_placeholders": True, "stop_sequence": ["{{[INPUT]}}", "\n\n"], "render_special": True}
    choice = answered(saying("ok<|im_start|>user"), CHAT, stops)
    assert (text_of(choice), choice["stop_reason"]) == ("ok", "<|im_start|>user")
    assert text_of(answered(saying("ok\n\nno"), CHAT, stops)) == "ok"
    body = {"prompt": "{{[INPUT]}}hi{{[OUTPUT]}}", "replace_instruct_placeholders": True}
    assert prompt_of(TEXT, body) == ASKED + "<|im_start|>assistant\n"
    assert prompt_of(TEXT, {**body, "replace_instruct_placeholders": False}) == body["prompt"]
    chat = {"messages": [{"role": "user", "content": "hi{{[INPUT_END]}}"}], "replace_instruct_placeholders": True}
    assert prompt_of(CHAT, chat).startswith("<|im_start|>user\nhi<|im_end|>\n")
    assert refused(TEXT, body, chat_template=None) == (400, "replace_instruct_placeholders")


LONG = "ab" * 500 + "c"
LONG_BODIES = {CHAT: {"messages": [{"role": "user", "content": LONG}]}, TEXT: {"prompt": LONG}}


@pytest.mark.parametrize(
    ("path", "kobolds", "end"),
    [
        (CHAT, {"genkey": "KCPP1"}, "abc<|im_end|>\n<|im_start|>assistant\n"),
        (CHAT, {"continue_assistant_turn": True}, "abc<|im_end|>\n<|im_start|>assistant\n"),
        (TEXT, {"genkey": "KCPP1"}, "abc"),
        (TEXT, {"api_type": "koboldcpp"}, "abc"),
        (CHAT, {"api_type": "koboldcpp"}, "abc<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_long_prompt_of_kobolds_clients_loses_its_beginning(path: str, kobolds: dict[str, Any], end: str) -> None:
    core = saying("ok")
    answered(core, path, {**LONG_BODIES[path], **kobolds, "max_length": 1000})
    job = core.streams[0].job
    assert (len(job.prompt_ids), job.params.max_tokens) == (40, 160)
    assert TOKENIZER.decode(job.prompt_ids, skip_special_tokens=False).endswith(end)
    answered(core, path, {**LONG_BODIES[path], **kobolds, "max_length": 10, "truncate_prompt_tokens": 30})
    assert len(core.streams[1].job.prompt_ids) == 30
    assert refused(path, {**LONG_BODIES[path], "max_length": 10})[0] == 400


@pytest.mark.parametrize(
    ("body", "num_top"),
    [
        ({"genkey": "KCPP1", "logprobs": True}, 5),
        ({"continue_assistant_turn": True, "logprobs": True}, 5),
        ({"genkey": "KCPP1", "logprobs": True, "top_logprobs": 2}, 2),
        ({"genkey": "KCPP1", "logprobs": False}, None),
        ({"logprobs": True}, 0),
    ],
)
def test_kobolds_clients_get_five_alternatives(body: dict[str, Any], num_top: int | None) -> None:
    logprobs = answered(saying("ok"), CHAT, body)["logprobs"]
    assert (None if logprobs is None else len(logprobs["content"][0]["top_logprobs"])) == num_top
    if num_top == 5:
        [first, _] = answered(saying("ok"), CHAT, body, max_logprobs=1)["logprobs"]["content"]
        assert len(first["top_logprobs"]) == 1


@pytest.mark.parametrize("path", ROUTES)
def test_kobolds_clients_have_their_biases_cut(path: str) -> None:
    core = saying("ok")
    answered(core, path, {"genkey": "KCPP1", "logit_bias": {"5": -1000, "6": 3}})
    assert core.streams[0].job.params.logit_bias == {5: -100, 6: 3}
    assert refused(path, {"logit_bias": {"5": -1000}})[0] == 400


async def until_text(client: httpx.AsyncClient, genkey: str) -> str:
    """What check tells as soon as there is something."""
    while True:
        reply = await client.post("/api/extra/generate/check", json={"genkey": genkey})
        if text := reply.json()["results"][0]["text"]:
            return text
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("path", ROUTES)
def test_a_stream_is_looked_at_and_aborted_by_its_genkey(path: str) -> None:
    core = saying("x" * 150, step_s=0.005)

    async def go() -> tuple[str, dict[str, Any], dict[str, Any], str]:
        async with http_client(core) as client:
            body = {**ROUTES[path], "stream": True, "genkey": "KCPP1", "logprobs": True}
            running = asyncio.ensure_future(client.post(path, json=body))
            seen = await until_text(client, "KCPP1")
            scored = (await client.post("/api/extra/last_logprobs", json={"genkey": "KCPP1"})).json()["logprobs"]
            told = (await client.post("/api/extra/abort", json={"genkey": "KCPP1"})).json()
            return seen, scored, told, (await running).text

    seen, scored, told, events = run(go())
    *_, last, done = [event.removeprefix("data: ") for event in events.strip().split("\n\n")]
    assert "".join(scored["tokens"]).startswith(seen)
    assert told == {"success": "true", "done": "true"}
    assert (json.loads(last)["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    assert core.num_running == 0


@pytest.mark.parametrize("path", ROUTES)
def test_an_aborted_answer_is_what_there_is(path: str) -> None:
    core = saying("x" * 150, step_s=0.005)

    async def go() -> tuple[str, dict[str, Any]]:
        async with http_client(core) as client:
            body = {**ROUTES[path], "max_tokens": 150, "genkey": "KCPP1"}
            running = asyncio.ensure_future(client.post(path, json=body))
            seen = await until_text(client, "KCPP1")
            await client.post("/api/extra/abort")  # without a key: it is the only one
            return seen, (await running).json()["choices"][0]

    seen, choice = run(go())
    assert text_of(choice).startswith(seen)
    assert (len(text_of(choice)) < 150, choice["finish_reason"]) == (True, "length")


def test_an_answer_without_a_genkey_is_nobodys_to_abort() -> None:
    core = saying("x" * 150, step_s=0.002)

    async def go() -> tuple[dict[str, Any], dict[str, Any]]:
        async with http_client(core) as client:
            running = asyncio.ensure_future(client.post(CHAT, json={**HI, "max_tokens": 20}))
            while not core.num_running:
                await asyncio.sleep(0.001)
            told = (await client.post("/api/extra/abort")).json()
            return told, (await running).json()["usage"]

    told, usage = run(go())
    assert (told, usage["completion_tokens"]) == ({"success": "false", "done": "true"}, 20)


def test_a_genkey_is_its_own_accounts() -> None:
    keys = [make_key("sk-ann", "ann", limits=Limits()), make_key("sk-bob", "bob", limits=Limits())]
    app = create_app(saying("Hi!"), served(), Access(keys))

    async def go() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            ann, bob = ({"Authorization": f"Bearer {key}"} for key in ("sk-ann", "sk-bob"))
            await client.post(CHAT, json={**HI, "genkey": "KCPP1"}, headers=ann)
            checks = [
                await client.post("/api/extra/generate/check", json={"genkey": "KCPP1"}, headers=who)
                for who in (ann, bob)
            ]
            return [reply.json()["results"][0]["text"] for reply in checks]

    assert run(go()) == ["Hi!", ""]


def test_an_abort_may_overtake_a_chat_and_is_forgotten_with_it() -> None:
    core = FakeCore()

    async def go() -> list[Any]:
        async with http_client(core) as client:
            entered, go_on = asyncio.Event(), asyncio.Event()

            async def slow_body() -> Any:
                yield b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "genkey": "KCPP1"'
                entered.set()
                await go_on.wait()
                yield b"}"

            running = asyncio.ensure_future(client.post(CHAT, content=slow_body()))
            await entered.wait()
            told = [(await client.post("/api/extra/abort", json={"genkey": f"KCPP{i}"})).json() for i in (1, 2)]
            go_on.set()
            texts = [text_of((await running).json()["choices"][0])]
            for genkey in ("KCPP1", "KCPP2"):
                again = await client.post(CHAT, json={**HI, "max_tokens": 3, "genkey": genkey})
                texts.append(text_of(again.json()["choices"][0]))
            return [*told, *texts]

    remembered = {"success": "true", "done": "false"}
    begun = TOKENIZER.decode(TOKENIZER.encode_chat("<|im_start|>us"))
    assert run(go()) == [remembered, remembered, "", begun, begun]
