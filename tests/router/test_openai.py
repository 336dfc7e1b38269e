"""OpenAI's routes through OpenAI's own client, and the bytes it does not show."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import openai
import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import JobError
from isthmus.tests.router.edge import EOS, TEMPLATE, TOKENIZER, ask, byte_tokenizer, http_client, ids, run, say, saying
from isthmus.text.chat_template import ChatTemplate
from isthmus.text.tool_calls.formats import FORMATS

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def with_client(core: FakeCore, use: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, Any]], **changes: Any) -> Any:
    async def go() -> Any:
        async with http_client(core, **changes) as http:
            client = openai.AsyncOpenAI(api_key="x", base_url="http://test/v1", http_client=http, max_retries=0)
            return await use(client)

    return run(go())


def events(reply: Any) -> list[Any]:
    """The data of each event; asserts OpenAI's framing."""
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = reply.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


def post(core: FakeCore, path: str, body: dict[str, Any], **changes: Any) -> Any:
    return ask(core, "POST", path, json=body, served_with=changes)


def test_models():
    async def use(client):
        listed = await client.models.list()
        return [card.id for card in listed.data], await client.models.retrieve("alias")

    names, card = with_client(FakeCore(), use)
    assert names == ["tiny", "alias"]
    assert (card.id, card.created, card.max_model_len) == ("alias", 1_700_000_000, 200)


def test_an_unknown_model_is_not_found():
    async def use(client):
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            await client.models.retrieve("gpt-9")
        with pytest.raises(openai.NotFoundError) as error:
            await client.chat.completions.create(model="gpt-9", **CHAT)
        return error.value

    error = with_client(FakeCore(), use)
    assert (error.code, error.param) == ("model_not_found", "model")


def test_chat():
    core = saying("Hello.")

    async def use(client):
        return await client.chat.completions.create(model="tiny", **CHAT)

    answer = with_client(core, use)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    assert answer.system_fingerprint == "isthmus-0.1.0"
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello.")
    assert (choice.index, choice.finish_reason, choice.stop_reason) == (0, "stop", None)
    prompt = TOKENIZER.encode_chat("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    [stream] = core.streams
    assert list(stream.job.prompt_ids) == prompt
    assert stream.job.params.max_tokens == 200 - len(prompt)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(prompt), 7, len(prompt) + 7)
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert set(usage.timings) == {"queue_s", "prefill_s", "transfer_s", "decode_s"}


def test_chat_streams_whole_characters():
    async def use(client):
        stream = await client.chat.completions.create(model="tiny", stream=True, **CHAT)
        return [chunk async for chunk in stream]

    chunks = with_client(saying("né🎉"), use)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "n", "é", "🎉", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_stream_ends_with_usage_and_done():
    body = {"prompt": "abc", "stream": True, "max_tokens": 2, "stream_options": {"include_usage": True}}
    *chunks, last, done = events(post(FakeCore(), "/v1/completions", body))
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None, None]
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (3, 2)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("more", [{}, {"logprobs": 1}, {"stop": ["z"], "return_token_ids": True, "echo": True}])
def test_each_chunk_of_a_completion_tells_the_usage_so_far(n, more):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "abc", "stream": True, "max_tokens": 4, "n": n, "stream_options": options, **more}
    *chunks, last, _ = events(post(FakeCore(), "/v1/completions", body))
    told = [chunk["usage"] for chunk in chunks]
    assert {usage["prompt_tokens"] for usage in told} == {3}
    counts = [usage["completion_tokens"] for usage in told]
    assert counts == sorted(counts)
    assert len(set(counts)) >= 4
    assert counts[-1] == last["usage"]["completion_tokens"] == 4 * n
    assert all(usage["total_tokens"] == 3 + usage["completion_tokens"] for usage in told)
    assert last["choices"] == []


@pytest.mark.parametrize("more", [{}, {"tools": [{"type": "function", "function": {"name": "f"}}]}])
def test_each_chunk_of_a_chat_tells_the_usage_so_far(more):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**CHAT, "stream": True, "stream_options": options, **more}
    changes = {"call_format": FORMATS["hermes"], "max_model_len": 2000}
    *chunks, last, _ = events(post(saying("hello"), "/v1/chat/completions", body, **changes))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert (counts, last["usage"]["completion_tokens"]) == ([1, 1, 2, 3, 4, 5, 6], 6)


def test_without_include_usage_no_chunk_speaks_of_it():
    *chunks, done = events(post(FakeCore(), "/v1/completions", {"prompt": "abc", "stream": True}))
    assert done == "[DONE]"
    assert not any("usage" in chunk for chunk in chunks)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abc" * 5 + "a"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_tokens_that_arrive_together_are_one_event():
    body = {"prompt": "abcdefgh", "stream": True, "max_tokens": 8}
    *chunks, _ = events(post(FakeCore(tokens_per_step=4), "/v1/completions", body))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["abcd", "efgh"]


PROMPTS = [
    ("ab", ["ab"]),
    (["ab", "cd"], ["ab", "cd"]),
    (ids("ab"), ["ab"]),
    ([float(ids("a")[0]), *ids("b")], ["ab"]),
    ([ids("ab"), ids("cd")], ["ab", "cd"]),
]


@pytest.mark.parametrize(("prompt", "texts"), PROMPTS, ids=["string", "strings", "ids", "floats", "lists of ids"])
@pytest.mark.parametrize("echo", [False, True])
def test_completions_of_every_form_of_prompt(prompt, texts, echo):
    core = FakeCore()

    async def use(client):
        return await client.completions.create(model="tiny", prompt=prompt, max_tokens=2, n=2, echo=echo)

    answer = with_client(core, use)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    expected = [text if start == 0 else text[::-1] for text in texts for start in (0, 1)]
    before = [text if echo else "" for text in texts for _ in range(2)]
    assert [c.text for c in answer.choices] == [a + b for a, b in zip(before, expected, strict=True)]
    assert [c.index for c in answer.choices] == list(range(2 * len(texts)))
    assert [list(stream.job.prompt_ids) for stream in core.streams] == [ids(text) for text in texts]
    assert [stream.job.prompt_index for stream in core.streams] == list(range(len(texts)))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2 * len(texts), 4 * len(texts))


def test_streamed_echo_comes_first():
    body = {"prompt": ["ab", "cd"], "echo": True, "stream": True, "max_tokens": 2}
    *chunks, _ = events(post(FakeCore(), "/v1/completions", body))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert [chunk["choices"][0]["text"] for chunk in chunks[:2]] == ["ab", "cd"]
    assert texts == {0: "abab", 1: "cdcd"}


@pytest.mark.parametrize("echo", [False, True])
def test_no_tokens_compute_the_prompt_alone(echo):
    core = FakeCore()
    answer = post(core, "/v1/completions", {"prompt": ["ab", "cd"], "max_tokens": 0, "echo": echo}).json()
    texts = ["ab", "cd"] if echo else ["", ""]
    assert [(c["text"], c["finish_reason"]) for c in answer["choices"]] == [(text, "length") for text in texts]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (4, 0)
    assert all(stream.job.prompt_only for stream in core.streams)


def test_streamed_without_tokens():
    body = {"prompt": "ab", "max_tokens": 0, "stream": True, "echo": True}
    *chunks, done = events(post(FakeCore(), "/v1/completions", body))
    assert done == "[DONE]"
    assert [(c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks] == [
        ("ab", None),
        ("", "length"),
    ]


def test_a_chat_wants_at_least_one_token():
    answer = post(FakeCore(), "/v1/chat/completions", {**CHAT, "max_completion_tokens": 0})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("max_completion_tokens: must be at least 1")


@pytest.mark.parametrize("stop", ["END", ["zz", "END"]])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_across_tokens(stop, stream):
    core = saying("some EEND more")
    body = {**CHAT, "stop": stop, "stream": stream}
    reply = post(core, "/v1/chat/completions", body)
    if stream:
        *chunks, _ = events(reply)
        text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
        choice = chunks[-1]["choices"][0]
    else:
        [choice] = reply.json()["choices"]
        text = choice["message"]["content"]
    assert (text, choice["finish_reason"], choice["stop_reason"]) == ("some E", "stop", "END")
    assert core.num_running == 0


def test_include_stop_and_stop_tokens_and_special_tokens():
    token = ids("b")[0]
    body = {"prompt": "x", "include_stop_str_in_output": True, "stop_token_ids": [token]}
    [choice] = post(saying("abc"), "/v1/completions", body).json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", token)
    shown = {"prompt": "x", "skip_special_tokens": False, "ignore_eos": True, "max_tokens": 3}
    core = FakeCore(lambda job, choice: iter([EOS, *ids("ab")]))
    [choice] = post(core, "/v1/completions", shown).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("<|im_end|>ab", "length")


def test_sampling_reaches_the_job():
    body = {
        "prompt": "ab",
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "rep_pen": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"7": -100},
        "seed": 11,
        "sampler_seed": 11,
        "min_tokens": 1,
        "max_new_tokens": 4,
        "stop_token_ids": [3],
        "use_default_badwordsids": True,
    }
    core = FakeCore()
    assert post(core, "/v1/completions", body).status_code == 200
    params = core.streams[0].job.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 40, 0.05)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, 0.1, 0.2)
    assert (params.logit_bias, params.seed, params.min_tokens, params.max_tokens) == ({7: -100.0}, 11, 1, 4)
    assert (params.stop_token_ids, params.ignore_eos) == ((3,), True)
    assert core.streams[0].job.eos_ids == (EOS,)


@pytest.mark.parametrize("seed", [{}, {"seed": None}, {"seed": -1}])
def test_without_a_seed_each_request_gets_its_own(seed):
    core = FakeCore()
    for _ in range(2):
        post(core, "/v1/completions", {"prompt": ["a", "b"], **seed})
    seeds = [stream.job.params.seed for stream in core.streams]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert min(seeds) >= 0


def test_null_is_as_good_as_left_out():
    nulls = dict.fromkeys(
        ("model", "n", "stop", "max_tokens", "temperature", "logprobs", "top_a", "logit_bias", "user")
    )
    core = FakeCore()
    assert post(core, "/v1/completions", {"prompt": "a", **nulls}).status_code == 200
    assert core.streams[0].job.params.max_tokens == 16


def test_neutral_values_and_no_ops_are_accepted():
    neutral = {
        "user": "u",
        "store": True,
        "metadata": {"a": "b"},
        "api_type": "aphrodite",
        "api_server": "http://127.0.0.1",
        "early_stopping": False,
        "top_a": 0,
        "tfs": 1,
        "typical_p": 1.0,
        "dynatemp_range": 0,
        "dynatemp_exponent": 2.5,
        "smoothing_factor": 0.0,
        "smoothing_curve": 3,
        "xtc_probability": 0,
        "xtc_threshold": 0.3,
        "dry_multiplier": 0,
        "dry_sequence_breakers": '["\\n"]',
        "mirostat_mode": 0,
        "mirostat_tau": 5,
        "rep_pen_range": 320,
        "banned_strings": [],
        "logprobs": False,
        "tools": [],
        "response_format": {"type": "text"},
    }
    reply = post(FakeCore(), "/v1/completions", {"prompt": "a", **neutral})
    assert reply.status_code == 200, reply.text


def test_neutral_values_of_other_servers_fields_are_accepted_in_chats():
    neutral = {
        "echo": False,
        "mm_processor_kwargs": None,
        "kv_transfer_params": None,
        "stream": True,
        "stream_options": {"include_usage": None, "include_obfuscation": None},
    }
    reply = post(saying("ok"), "/v1/chat/completions", {**CHAT, **neutral})
    assert (reply.status_code, "usage" in reply.text) == (200, False)


def test_content_parts_are_joined():
    core = saying("ok")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    post(core, "/v1/chat/completions", {"messages": [{"role": "user", "content": parts, "name": None}]})
    assert "user\na\nb<|im_end|>" in TOKENIZER.decode(core.streams[0].job.prompt_ids, skip_special_tokens=False)


def prompt_of(body: dict[str, Any], **changes: Any) -> str:
    core = saying("ok")
    reply = post(core, "/v1/chat/completions", {**CHAT, **body}, **changes)
    assert reply.status_code == 200, reply.text
    return TOKENIZER.decode(core.streams[0].job.prompt_ids, skip_special_tokens=False)


def test_how_a_chat_becomes_a_prompt():
    said = "<|im_start|>user\nhi<|im_end|>\n"
    assert prompt_of({}) == said + "<|im_start|>assistant\n"
    assert prompt_of({"add_generation_prompt": False}) == said
    open_end = {"add_generation_prompt": False, "continue_final_message": True}
    assert prompt_of(open_end) == "<|im_start|>user\nhi"
    template = ChatTemplate("{{ mood }}:" + TEMPLATE, {})
    assert prompt_of({"chat_template_kwargs": {"mood": "glad"}}, chat_template=template).startswith("glad:<|im_start|>")
    bos = byte_tokenizer(bos=True)
    assert prompt_of({}, tokenizer=bos).startswith("<|bos|><|im_start|>")
    assert prompt_of({"add_special_tokens": True}, tokenizer=bos).startswith("<|bos|><|im_start|>")


def test_a_text_prompt_begins_with_bos_unless_told_otherwise():
    core, bos = FakeCore(), byte_tokenizer(bos=True)
    post(core, "/v1/completions", {"prompt": "a"}, tokenizer=bos)
    post(core, "/v1/completions", {"prompt": "a", "add_special_tokens": False}, tokenizer=bos)
    post(core, "/v1/completions", {"prompt": "a", "add_bos_token": False}, tokenizer=bos)
    assert [len(stream.job.prompt_ids) for stream in core.streams] == [2, 1, 1]


def test_a_template_that_refuses_is_a_bad_request():
    template = ChatTemplate("{{ raise_exception('no system messages here') }}", {})
    reply = post(FakeCore(), "/v1/chat/completions", CHAT, chat_template=template)
    assert reply.status_code == 400
    assert "no system messages here" in reply.json()["error"]["message"]


def test_a_large_body_is_understood_off_the_event_loop(monkeypatch):
    threads = []
    to_thread = asyncio.to_thread

    async def spy(*args):
        threads.append(args[0])
        return await to_thread(*args)

    monkeypatch.setattr(asyncio, "to_thread", spy)
    post(FakeCore(), "/v1/completions", {"prompt": "x"})
    assert threads == []
    reply = post(FakeCore(), "/v1/completions", {"prompt": "x" * 5000}, max_model_len=6000)
    assert reply.status_code == 200
    assert len(threads) == 1


def failing(text: str) -> FakeCore:
    def script(job, choice):
        yield from ids(text)
        raise JobError(500, "the worker died")

    return FakeCore(script)


def test_an_error_after_the_first_token_is_an_event_and_the_end():
    *chunks, last = events(post(failing("ab"), "/v1/chat/completions", {**CHAT, "stream": True}))
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "ab"
    assert last == {"error": {"message": "the worker died", "type": "server_error", "param": None, "code": None}}


def test_openais_client_raises_on_an_error_event():
    async def use(client):
        stream = await client.chat.completions.create(model="tiny", stream=True, **CHAT)
        with pytest.raises(openai.APIError, match="the worker died"):
            async for _ in stream:
                pass

    with_client(failing("ab"), use)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_token_is_a_status(stream):
    reply = post(failing(""), "/v1/chat/completions", {**CHAT, "stream": stream})
    assert (reply.status_code, reply.json()["error"]["message"]) == (500, "the worker died")


def test_an_error_of_an_unstreamed_request_is_a_status_at_any_time():
    assert post(failing("abc"), "/v1/chat/completions", CHAT).status_code == 500


def test_a_bug_in_a_stream_is_an_error_event_too(caplog):
    def script(job, choice):
        yield from ids("a")
        raise ZeroDivisionError

    *_, last = events(post(FakeCore(script), "/v1/completions", {"prompt": "a", "stream": True}))
    assert last["error"]["message"] == "internal error"
    assert "ZeroDivisionError" in caplog.text


def test_choices_stream_interleaved_and_each_ends_once():
    core = FakeCore(say("one", "two!"))
    body = {**CHAT, "n": 2, "stream": True}
    *chunks, _ = events(post(core, "/v1/chat/completions", body))
    texts, ends = {0: "", 1: ""}, []
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["delta"]["content"]
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert texts == {0: "one", 1: "two!"}
    assert ends == [0, 1]
