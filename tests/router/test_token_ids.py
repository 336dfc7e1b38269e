"""return_token_ids and truncate_prompt_tokens."""

from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import EOS, TOKENIZER, ask, byte_tokenizer, ids, say, saying
from isthmus.tests.router.test_openai import CHAT, events, post
from isthmus.text.tool_calls.formats import FORMATS

CHAT_IDS = ids("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def told(chunks: list[Any], index: int) -> list[int]:
    choices = [choice for chunk in chunks[:-1] for choice in chunk["choices"] if choice["index"] == index]
    return [token_id for choice in choices for token_id in choice.get("token_ids") or ()]


def test_nobody_is_told_of_tokens_who_did_not_ask():
    body = {"prompt": "hi", "max_tokens": 5}
    assert "token_ids" not in post(saying("ab"), "/v1/completions", body).text
    assert "token_ids" not in post(saying("ab"), "/v1/completions", {**body, "stream": True}).text
    assert "token_ids" not in post(saying("ab"), "/v1/chat/completions", CHAT).text
    assert "token_ids" not in post(saying("ab"), "/v1/chat/completions", {**CHAT, "stream": True}).text


def test_each_choice_tells_its_prompts_tokens_and_its_own():
    body = {"prompt": ["a", "bc"], "n": 2, "max_tokens": 9, "return_token_ids": True}
    choices = post(saying("x", "yz"), "/v1/completions", body).json()["choices"]
    assert [c["prompt_token_ids"] for c in choices] == [ids("a")] * 2 + [ids("bc")] * 2
    assert [c["token_ids"] for c in choices] == [[*ids("x"), EOS], [*ids("yz"), EOS]] * 2


@pytest.mark.parametrize("more", [{}, {"logprobs": 1}, {"echo": True}, {"stop": "zz"}])
def test_chunks_tell_all_tokens_also_those_of_characters_that_are_not_complete(more):
    body = {"prompt": "a", "stream": True, "max_tokens": 9, "return_token_ids": True, **more}
    chunks = events(post(saying("x€y"), "/v1/completions", body))
    assert told(chunks, 0) == [*ids("x€y"), EOS]
    prompts = [chunk["choices"][0].get("prompt_token_ids") for chunk in chunks[:-1]]
    assert prompts == [ids("a"), *[None] * (len(chunks) - 2)]
    assert chunks[0]["choices"][0]["text"] == ("a" if more.get("echo") else "")


def test_tokens_end_with_the_one_that_completes_a_stop_string():
    core = FakeCore(say("abENDcd"), tokens_per_step=9)
    body = {"prompt": "a", "max_tokens": 9, "stop": "END", "return_token_ids": True}
    reply = post(core, "/v1/completions", body).json()
    assert (reply["choices"][0]["text"], reply["choices"][0]["token_ids"]) == ("ab", ids("abEND"))
    assert reply["usage"]["completion_tokens"] == 5


def test_a_chat_tells_the_prompt_once():
    body = {**CHAT, "return_token_ids": True}
    reply = post(saying("ok"), "/v1/chat/completions", body).json()
    assert (reply["prompt_token_ids"], reply["choices"][0]["token_ids"]) == (CHAT_IDS, [*ids("ok"), EOS])
    chunks = events(post(saying("ok"), "/v1/chat/completions", {**body, "stream": True}))
    assert [chunk.get("prompt_token_ids") for chunk in chunks[:-1]] == [CHAT_IDS, *[None] * (len(chunks) - 2)]
    assert told(chunks, 0) == [*ids("ok"), EOS]


def test_tokens_of_markers_are_told_where_their_text_is_not():
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {**CHAT, "tools": tools, "stream": True, "return_token_ids": True}
    chunks = events(post(saying(call), "/v1/chat/completions", body, call_format=FORMATS["hermes"], max_model_len=2000))
    assert told(chunks, 0) == [*ids(call), EOS]


def prompt_kept(body: dict[str, Any], path: str = "/v1/completions", **changes: Any) -> str:
    core = saying("ok")
    reply = ask(core, "POST", path, json={"max_tokens": 4, **body}, served_with=changes)
    assert reply.status_code == 200, reply.text
    return TOKENIZER.decode(core.streams[0].job.prompt_ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("limit", "kept"), [(1, "f"), (3, "def"), (6, "abcdef"), (99, "abcdef"), (-1, "cdef"), (None, "abcdef")]
)
def test_the_end_of_a_prompt_is_kept(limit, kept):
    room = 12 if limit != -1 else 8
    body = {"prompt": "abcdef", "truncate_prompt_tokens": limit}
    assert prompt_kept(body, max_model_len=room) == kept
    assert prompt_kept({**body, "prompt": ids("abcdef")}, max_model_len=room) == kept


def test_without_max_tokens_a_chats_prompt_leaves_room_for_one():
    core = saying("ok")
    post(core, "/v1/chat/completions", {**CHAT, "truncate_prompt_tokens": -1}, max_model_len=20)
    assert core.streams[0].job.prompt_ids == CHAT_IDS[-19:]
    assert core.streams[0].job.params.max_tokens == 1


def test_bos_stays_and_echo_shows_what_is_left():
    bos = {"tokenizer": byte_tokenizer(bos=True)}
    assert prompt_kept({"prompt": "abcdef", "truncate_prompt_tokens": 3}, **bos) == "<|bos|>ef"
    body = {"prompt": "abcdef", "truncate_prompt_tokens": 3, "echo": True, "max_tokens": 3}
    assert post(saying("!"), "/v1/completions", body, **bos).json()["choices"][0]["text"] == "ef!"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": "3"}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 300}, "prompt"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 200}, "max_tokens"),
        ({"return_token_ids": 1}, "return_token_ids"),
    ],
)
def test_what_cannot_be_truncated_or_told_is_named(body, param):
    reply = post(saying("ok"), "/v1/completions", {"prompt": "a" * 300, **body})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
