"""Logprobs over HTTP: OpenAI's two shapes, KoboldCpp's, vLLM's of prompts; whole and streamed."""

import json
import math
from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore, made_up_logprobs
from isthmus.router.job import Job, NewTokens
from isthmus.router.logprobs_json import completion_logprobs, token_text
from isthmus.router.text_stream import ChoiceText, TextOptions
from isthmus.tests.router.edge import EOS, TOKENIZER, ask, http_client, ids, run, saying
from isthmus.tests.router.test_openai import CHAT, events, post, with_client
from isthmus.wire.logprobs import TokenLogprobs
from isthmus.wire.sampling import SamplingParams

PRIVATE = {"prompt": "ab", "logprobs": 2}


def logprob_of(text: str) -> float:
    """As `FakeCore` makes them up."""
    return -ids(text)[0] / 64


def choice_text(stops: tuple[str, ...] = (), *, include_stop: bool = False, min_tokens: int = 0) -> ChoiceText:
    params = SamplingParams(logprobs=1, min_tokens=min_tokens)
    return ChoiceText(0, TOKENIZER, Job("r", 0, ids("p"), 1, params, (EOS,)), TextOptions(stops, include_stop))


def feed(text: ChoiceText, token_ids: list[int], reason: Any = "length") -> list[tuple[str, list[int]]]:
    """Each piece's text and the tokens whose logprobs came with it, token by token."""
    pieces = []
    for index, token in enumerate(token_ids):
        if text.finish_reason is not None:
            break
        last = index == len(token_ids) - 1
        stop = token if last and reason == "stop" else None
        new = NewTokens(0, [token], reason if last else None, stop, made_up_logprobs([token], 1))
        if piece := text.push(new):
            pieces.append((piece.text, [scored.token_id for scored in piece.logprobs]))
    return pieces


def test_half_a_character_holds_its_logprobs_back():
    text = choice_text()
    assert feed(text, ids("a€b")) == [("a", ids("a")), ("€", ids("€")), ("b", ids("b"))]
    assert [scored.start for scored in text.logprobs] == [0, 1, 1, 1, 2]


def test_what_may_become_a_stop_string_holds_its_logprobs_back():
    assert feed(choice_text(("STOP",)), ids("aSTx")) == [("a", ids("a")), ("STx", ids("STx"))]
    assert feed(choice_text(("STOP",)), ids("aSTOPb")) == [("a", ids("a")), ("", [])]
    assert feed(choice_text(("STOP",), include_stop=True), ids("aSTOPb"))[-1] == ("STOP", ids("STOP"))
    assert feed(choice_text(("STOP",)), ids("aST")) == [("a", ids("a")), ("ST", ids("ST"))]


def test_a_choice_that_ends_gives_all_that_are_left():
    half = ids("€")[:2]
    assert feed(choice_text(), [*ids("a"), *half]) == [("a", ids("a")), ("\ufffd", half)]


def test_an_end_of_sequence_has_no_text_and_no_logprobs_but_counts():
    text = choice_text()
    assert feed(text, [*ids("a"), EOS], "stop") == [("a", ids("a")), ("", [])]
    assert text.sum_logprobs == pytest.approx(logprob_of("a") - EOS / 64)


def test_many_tokens_at_once_are_as_one_by_one():
    tokens = ids("a€bSTc€")
    alone, together = choice_text(("STOP",)), choice_text(("STOP",))
    feed(alone, tokens)
    together.push(NewTokens(0, tokens, "length", None, made_up_logprobs(tokens, 1)))
    assert together.logprobs == alone.logprobs
    assert together.sum_logprobs == alone.sum_logprobs


def test_completions_through_openai_s_client():
    async def use(client: Any) -> Any:
        return await client.completions.create(model="tiny", **PRIVATE)

    (choice,) = with_client(saying("hé"), use).choices
    assert choice.text == "hé"
    assert choice.logprobs.tokens == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    assert choice.logprobs.token_logprobs == [-i / 64 for i in ids("hé")]
    first = choice.logprobs.top_logprobs[0]
    assert first == {token_text(TOKENIZER, 0): 0.0, token_text(TOKENIZER, 1): -1 / 64, "h": logprob_of("h")}
    assert choice.logprobs.text_offset == [0, 1, 1]


def test_chat_through_openai_s_client():
    async def use(client: Any) -> Any:
        return await client.chat.completions.create(model="tiny", logprobs=True, top_logprobs=3, **CHAT)

    (choice,) = with_client(saying("hé"), use).choices
    content = choice.logprobs.content
    assert [item.token for item in content] == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    assert b"".join(bytes(item.bytes) for item in content).decode() == "hé"
    assert [item.logprob for item in content] == [-i / 64 for i in ids("hé")]
    assert [[top.logprob for top in item.top_logprobs] for item in content] == [[0.0, -1 / 64, -2 / 64]] * 3


def test_chat_without_alternatives():
    reply = post(saying("h"), "/v1/chat/completions", {**CHAT, "logprobs": True}).json()
    (item,) = reply["choices"][0]["logprobs"]["content"]
    assert item == {"token": "h", "logprob": logprob_of("h"), "bytes": [104], "top_logprobs": []}


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_a_streamed_completion_says_the_same_as_a_whole_one(echo: bool, tokens_per_step: int):
    body = {**PRIVATE, "echo": echo, "n": 2, "stop": ["lon"]}

    def core() -> FakeCore:
        return saying("so long, €", "another", tokens_per_step=tokens_per_step)

    whole = post(core(), "/v1/completions", body).json()["choices"]
    joined: list[dict[str, Any]] = [{"text": "", "logprobs": None} for _ in whole]
    for event in events(post(core(), "/v1/completions", {**body, "stream": True}))[:-1]:
        (choice,) = event["choices"]
        into = joined[choice["index"]]
        into["text"] += choice["text"]
        assert "".join(text for text in choice["logprobs"]["tokens"] if not text.startswith("bytes:")) in choice["text"]
        known = into["logprobs"] or {name: [] for name in choice["logprobs"]}
        into["logprobs"] = {name: [*known[name], *choice["logprobs"][name]] for name in known}
    for streamed, choice in zip(joined, whole, strict=True):
        assert streamed == {"text": choice["text"], "logprobs": choice["logprobs"]}
    assert whole[0]["text"] == ("ab" if echo else "") + "so "


def test_a_streamed_chat_says_the_same_as_a_whole_one():
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    whole = post(saying("say €!"), "/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    chunks = events(post(saying("say €!"), "/v1/chat/completions", {**body, "stream": True}))[:-1]
    assert chunks[0]["choices"][0]["logprobs"] is None, "the role has none"
    assert [item for chunk in chunks[1:] for item in chunk["choices"][0]["logprobs"]["content"]] == whole


def test_echo_puts_the_prompt_s_logprobs_first():
    (choice,) = post(saying("cd"), "/v1/completions", {**PRIVATE, "echo": True}).json()["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == "abcd"
    assert logprobs["tokens"] == ["a", "b", "c", "d"]
    assert logprobs["token_logprobs"] == [None, logprob_of("b"), logprob_of("c"), logprob_of("d")]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 1, 2, 3]
    assert "prompt_logprobs" not in choice


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_a_completions_tokens_may_be_named_by_their_ids(stream: bool, echo: bool):
    body = {**PRIVATE, "echo": echo, "return_tokens_as_token_ids": True, "stream": stream}
    reply = post(saying("c€"), "/v1/completions", body)
    answers = events(reply)[:-1] if stream else [reply.json()]
    told = [answer["choices"][0]["logprobs"] for answer in answers]
    names = [name for logprobs in told for name in logprobs["tokens"]]
    assert names == [f"token_id:{token_id}" for token_id in ids("abc€" if echo else "c€")]
    tops = [top for logprobs in told for top in logprobs["top_logprobs"]]
    assert tops[-1] == {"token_id:0": 0.0, "token_id:1": -1 / 64, names[-1]: -ids("€")[-1] / 64}


@pytest.mark.parametrize("stream", [False, True])
def test_a_chats_tokens_may_be_named_by_their_ids(stream: bool):
    body = {**CHAT, "logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True, "stream": stream}
    reply = post(saying("h"), "/v1/chat/completions", body)
    found = events(reply)[1] if stream else reply.json()
    (item,) = found["choices"][0]["logprobs"]["content"]
    assert (item["token"], item["bytes"]) == (f"token_id:{ids('h')[0]}", [104])
    assert item["top_logprobs"][0]["token"] == "token_id:0"


def test_a_prompt_alone_is_scored():
    """As evaluation harnesses ask: no token is made."""
    body = {"prompt": ["ab", "xyz"], "echo": True, "logprobs": 0, "max_tokens": 0}
    choices = post(FakeCore(), "/v1/completions", body).json()["choices"]
    assert [choice["logprobs"]["tokens"] for choice in choices] == [["a", "b"], ["x", "y", "z"]]
    assert choices[1]["logprobs"]["top_logprobs"] == [None, {"y": logprob_of("y")}, {"z": logprob_of("z")}]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_logprobs_as_vllm_gives_them(path: str):
    body = {"prompt": "ab"} if path == "/v1/completions" else CHAT
    reply = post(saying("c"), path, {**body, "prompt_logprobs": 1}).json()
    found = reply["choices"][0] if path == "/v1/completions" else reply
    first, second, *_ = found["prompt_logprobs"]
    assert first is None
    assert second["0"] == {"logprob": 0.0, "rank": 1, "decoded_token": token_text(TOKENIZER, 0)}
    assert reply["choices"][0]["logprobs"] is None
    if path == "/v1/completions":
        b = ids("b")[0]
        assert second[str(b)] == {"logprob": -b / 64, "rank": b + 1, "decoded_token": "b"}


def test_echo_and_prompt_logprobs_each_show_as_many_as_they_ask():
    (choice,) = post(saying("c"), "/v1/completions", {**PRIVATE, "echo": True, "prompt_logprobs": 5}).json()["choices"]
    assert len(choice["prompt_logprobs"][1]) == 6
    assert len(choice["logprobs"]["top_logprobs"][1]) == 3


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"logprobs": -1}, "logprobs", "--max-logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "from 0 to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "from 0 to 20"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "streaming"),
        ({"top_logprobs": 2}, "top_logprobs", ""),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"logprobs": "x"}, "logprobs", "got `str`"),
        ({"logprobs_mode": "cooked"}, "logprobs_mode", ""),
        ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids", "needs logprobs"),
    ],
)
def test_refusals_name_the_field(path: str, fields: dict[str, Any], param: str, says: str):
    chat = path == "/v1/chat/completions"
    if chat and isinstance(fields.get("logprobs"), int) and "top_logprobs" not in fields:
        says = "bool"  # a switch on chats
    if not chat and "top_logprobs" in fields:
        says = ""
        param = "top_logprobs"
    error = post(FakeCore(), path, {**(CHAT if chat else {"prompt": "ab"}), **fields})
    assert error.status_code == 400, error.text
    assert error.json()["error"]["param"] == param
    assert says in error.json()["error"]["message"]


def test_the_limit_is_the_server_s():
    assert post(FakeCore(), "/v1/completions", {"prompt": "a", "logprobs": 3}, max_logprobs=2).status_code == 400
    assert post(saying("a"), "/v1/completions", {"prompt": "a", "logprobs": 3}, max_logprobs=3).status_code == 200


def test_the_best_of_several():
    """By mean logprob per token, in which an end of sequence counts, though it is not shown: it is unlikely here."""
    core = saying("b", "a", "zz", "y")
    body = {"prompt": ["p", "q"], "n": 2, "best_of": 4, "max_tokens": 2}
    reply = post(core, "/v1/completions", body).json()
    shown = [(choice["index"], choice["text"]) for choice in reply["choices"]]
    assert shown == [(0, "zz"), (1, "a"), (2, "zz"), (3, "a")]
    assert all(choice["logprobs"] is None for choice in reply["choices"])
    assert reply["usage"]["completion_tokens"] == 16
    assert [stream.job.num_choices for stream in core.streams] == [4, 4]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": 3, "best_of": 2}, "at least n"),
        ({"best_of": 2, "stream": True}, "streaming"),
        ({"best_of": 0}, ">= 1"),
        ({"best_of": 129}, "<= 128"),
        ({"best_of": 100, "prompt": ["a", "b", "c"]}, "3 prompts × 100 choices exceed the limit of 256"),
    ],
)
def test_best_of_refusals(fields: dict[str, Any], says: str):
    error = post(FakeCore(), "/v1/completions", {"prompt": "a", **fields}).json()["error"]
    assert error["param"] == "best_of"
    assert says in error["message"]


def test_best_of_as_many_as_are_wanted_may_stream():
    assert (
        post(saying("a"), "/v1/completions", {"prompt": "a", "n": 2, "best_of": 2, "stream": True}).status_code == 200
    )


def test_kobold_gives_both_shapes():
    reply = ask(saying("hi"), "POST", "/api/v1/generate", json={"prompt": "a", "logprobs": True}).json()
    logprobs = reply["results"][0]["logprobs"]
    assert logprobs["tokens"] == ["h", "i"]
    assert logprobs["token_logprobs"] == [logprob_of("h"), logprob_of("i")]
    assert [len(tops) for tops in logprobs["top_logprobs"]] == [5, 5]
    assert logprobs["text_offset"] == [0, 1]
    assert [item["bytes"] for item in logprobs["content"]] == [[104], [105]]
    assert logprobs["content"][0]["top_logprobs"][1]["logprob"] == -1 / 64


def test_kobold_s_last_logprobs_are_there_after_the_end():
    async def go() -> list[Any]:
        found = []
        async with http_client(saying("hi")) as client:
            for genkey, asks in (("K1", True), ("K2", False)):
                body = {"prompt": "a", "logprobs": asks, "genkey": genkey}
                await client.post("/api/extra/generate/stream", json=body)
                reply = await client.post("/api/extra/last_logprobs", json={"genkey": genkey})
                found.append(reply.json()["logprobs"])
            found.append((await client.post("/api/extra/last_logprobs", json={"genkey": "K3"})).json()["logprobs"])
        return found

    first, second, third = run(go())
    assert first["tokens"] == ["h", "i"]
    assert second is None
    assert third is None


def test_json_has_no_infinity():
    shown = completion_logprobs(feed_one(TokenLogprobs(-math.inf, ((1, -0.5),), 9)), TOKENIZER)
    assert shown["token_logprobs"] == [-9999.0]
    assert json.dumps(shown, allow_nan=False)


def feed_one(logprobs: TokenLogprobs) -> Any:
    text = choice_text()
    text.push(NewTokens(0, ids("a"), None, None, (logprobs,)))
    return text.logprobs
