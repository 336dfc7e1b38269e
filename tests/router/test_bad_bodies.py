"""Every refusal names the field, on both APIs."""

import asyncio
import json

import httpx
import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import JobError
from isthmus.tests.router.edge import ask, http_client

COMPLETION = {"prompt": "hi"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}

BOTH = [
    ({"model": "gpt-9"}, 404, "model"),
    ({"model": 3}, 400, "model"),
    ({"nonsense": 1}, 400, "nonsense"),
    ({"n": 0}, 400, "n"),
    ({"n": 129}, 400, "n"),
    ({"n": 1.5}, 400, "n"),
    ({"n": True}, 400, "n"),
    ({"stream": "yes"}, 400, "stream"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"stream": True, "stream_options": {"wat": True}}, 400, "stream_options.wat"),
    ({"stream": True, "stream_options": []}, 400, "stream_options"),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        400,
        "stream_options.continuous_usage_stats",
    ),
    ({"chat_template": "{{ messages }}"}, 400, "chat_template"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, 400, "stream_options.include_obfuscation"),
    ({"stop": ""}, 400, "stop"),
    ({"stop": ["a", ""]}, 400, "stop[1]"),
    ({"stop": ["a"] * 65}, 400, "stop"),
    ({"stop": 4}, 400, "stop"),
    ({"max_tokens": -5}, 400, "max_tokens"),
    ({"max_tokens": "many"}, 400, "max_tokens"),
    ({"max_tokens": 199}, 400, "max_tokens"),
    ({"max_tokens": 2, "max_new_tokens": 3}, 400, "max_new_tokens"),
    ({"max_tokens": 2, "min_tokens": 3}, 400, "min_tokens"),
    ({"min_tokens": -1}, 400, "min_tokens"),
    ({"temperature": -0.1}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": -0.1}, 400, "top_p"),
    ({"top_p": 1.1}, 400, "top_p"),
    ({"top_k": -2}, 400, "top_k"),
    ({"top_k": 2.5}, 400, "top_k"),
    ({"min_p": 2}, 400, "min_p"),
    ({"presence_penalty": 3}, 400, "presence_penalty"),
    ({"frequency_penalty": -3}, 400, "frequency_penalty"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty"),
    ({"rep_pen": -1}, 400, "rep_pen"),
    ({"rep_pen": 1.1, "repetition_penalty": 1.2}, 400, "repetition_penalty"),
    ({"seed": 2**63}, 400, "seed"),
    ({"seed": "x"}, 400, "seed"),
    ({"sampler_seed": 1.5}, 400, "sampler_seed"),
    ({"ignore_eos": 1}, 400, "ignore_eos"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"5": 101}}, 400, "logit_bias"),
    ({"logit_bias": {"5": "a"}}, 400, "logit_bias"),
    ({"logit_bias": {"259": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, 400, "logit_bias"),
    ({"logit_bias": [1]}, 400, "logit_bias"),
    ({"stop_token_ids": [259]}, 400, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, 400, "stop_token_ids[0]"),
    ({"stop_token_ids": 5}, 400, "stop_token_ids"),
    ({"top_a": 1.2}, 400, "top_a"),
    ({"tfs_z": -0.1}, 400, "tfs_z"),
    ({"typical": 1.5}, 400, "typical"),
    ({"typ_p": 0.5, "typical_p": 0.6}, 400, "typical_p"),
    ({"eps_cutoff": -1}, 400, "eps_cutoff"),
    ({"eta_cutoff": 10001}, 400, "eta_cutoff"),
    ({"top_n_sigma": -2}, 400, "top_n_sigma"),
    ({"xtc_probability": 2, "xtc_threshold": 0.1}, 400, "xtc_probability"),
    ({"skew": 30}, 400, "skew"),
    ({"smoothing_curve": 0.5}, 400, "smoothing_curve"),
    ({"dynatemp_range": -1}, 400, "dynatemp_range"),
    ({"dynatemp_low": 2, "dynatemp_high": 1}, 400, "dynatemp_low"),
    ({"dynamic_temperature": 1}, 400, "dynamic_temperature"),
    ({"dry_multiplier": -0.8, "dry_base": 1.75}, 400, "dry_multiplier"),
    ({"dry_base": 0.5}, 400, "dry_base"),
    ({"dry_sequence_breakers": "[1"}, 400, "dry_sequence_breakers"),
    ({"dry_sequence_breakers": [[]]}, 400, "dry_sequence_breakers[0]"),
    ({"mirostat_mode": 3, "mirostat_tau": 5}, 400, "mirostat_mode"),
    ({"mirostat": 2.5}, 400, "mirostat"),
    ({"adaptive_decay": 1}, 400, "adaptive_decay"),
    ({"rep_pen": 1.1, "rep_pen_range": -2}, 400, "rep_pen_range"),
    ({"no_repeat_ngram_size": -1}, 400, "no_repeat_ngram_size"),
    ({"custom_token_bans": "1,x"}, 400, "custom_token_bans"),
    ({"token_ban_ranges": [[5]]}, 400, "token_ban_ranges[0]"),
    ({"token_ban_ranges": [[[5], 0]]}, 400, "token_ban_ranges[0]"),
    ({"token_ban_ranges": [[[5], -1, 3]]}, 400, "token_ban_ranges[0][1]"),
    ({"token_ban_ranges": [[[5] * 257, 0, 3]]}, 400, "token_ban_ranges"),
    ({"bad_words": [3]}, 400, "bad_words[0]"),
    ({"sampler_order": [6, 0, 1, 3, 4, 2]}, 400, "sampler_order"),
    ({"sampler_order": [6, 0, 1, 3, 4, 2, 2]}, 400, "sampler_order"),
    ({"sampler_priority": ["dry", "top_k"]}, 400, "sampler_priority"),
    ({"samplers": ["top_q"]}, 400, "samplers"),
    ({"guidance_scale": 1.5}, 400, "guidance_scale"),
    ({"guided_json": {"type": "object"}, "guided_regex": "a"}, 400, "guided_regex"),
    ({"logprobs_mode": "cooked"}, 400, "logprobs_mode"),
    ({"early_stopping": True}, 400, "early_stopping"),
    ({"metadata": 7}, 400, "metadata"),
    ({"store": "banana"}, 400, "store"),
    ({"service_tier": 5}, 400, "service_tier"),
    ({"user": {"name": "u"}}, 400, "user"),
    ({"max_tool_calls": True}, 400, "max_tool_calls"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, 400, "stream_options.include_usage"),
    ({"kv_transfer_params": {"do_remote_decode": True}}, 400, "kv_transfer_params"),
]
COMPLETIONS_ONLY = [
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [""]}, 400, "prompt[0]"),
    ({"prompt": ["a", ""]}, 400, "prompt[1]"),
    ({"prompt": [[]]}, 400, "prompt[0]"),
    ({"prompt": [[1], []]}, 400, "prompt[1]"),
    ({"prompt": [1.5, 2]}, 400, "prompt[0]"),
    ({"prompt": ["a", 1]}, 400, "prompt[1]"),
    ({"prompt": [1, "a"]}, 400, "prompt[1]"),
    ({"prompt": [[1], ["a"]]}, 400, "prompt[1][0]"),
    ({"prompt": [True]}, 400, "prompt[0]"),
    ({"prompt": {"text": "a"}}, 400, "prompt"),
    ({"prompt": 5}, 400, "prompt"),
    ({"prompt": [259]}, 400, "prompt"),
    ({"prompt": [5, -1]}, 400, "prompt"),
    ({"prompt": "x" * 200}, 400, "prompt"),
    ({"prompt": ["ok", "x" * 300]}, 400, "prompt"),
    ({"prompt": "x" * 190, "max_tokens": 11}, 400, "max_tokens"),
    ({"prompt": ["a"] * 100, "n": 3}, 400, "n"),
    ({"prompt": "x", "min_tokens": 17}, 400, "min_tokens"),
    ({"prompt": "x", "max_tokens": 0, "min_tokens": 1}, 400, "min_tokens"),
    ({"echo": "yes"}, 400, "echo"),
    ({"suffix": "tail"}, 400, "suffix"),
    ({"logprobs": -1}, 400, "logprobs"),
    ({"n": 2, "best_of": 1}, 400, "best_of"),
    ({"messages": []}, 400, "messages"),
]
USER = {"role": "user", "content": "hi"}
CACHE = "messages[0].content[0].cache_control"
CHAT_ONLY = [
    ({"best_of": 2}, 400, "best_of"),
    ({"logprobs": 5}, 400, "logprobs"),
    ({"messages": None}, 400, "messages"),
    ({"messages": []}, 400, "messages"),
    ({"messages": "hi"}, 400, "messages"),
    ({"messages": ["hi"]}, 400, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, 400, "messages[0].role"),
    ({"messages": [{"role": "", "content": "hi"}]}, 400, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    ({"messages": [{"role": "user", "text": "hi"}]}, 400, "messages[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": "x" * 300}]}, 400, "messages"),
    ({"max_tokens": 2, "max_completion_tokens": 3}, 400, "max_completion_tokens"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_completion_tokens": 0}, 400, "max_completion_tokens"),
    ({"max_completion_tokens": 500}, 400, "max_completion_tokens"),
    ({"min_tokens": 200}, 400, "min_tokens"),
    ({"tools": [{"type": "function"}]}, 400, "tools[0].function"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format"),
    ({"top_logprobs": 3}, 400, "top_logprobs"),
    ({"continue_final_message": True}, 400, "continue_final_message"),
    ({"chat_template_kwargs": [1]}, 400, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": 1}}, 400, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"a": 1, "tools": []}}, 400, "chat_template_kwargs.tools"),
    ({"echo": True}, 400, "echo"),
    ({"messages": [{**USER, "content": [{"type": "text", "text": "x", "cache_control": 5}]}]}, 400, CACHE),
    ({"prompt": "hi"}, 400, "prompt"),
]
KOBOLD = [
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": 5}, 400, "prompt"),
    ({"prompt": ["a"]}, 400, "prompt"),
    ({"memory": 1}, 400, "memory"),
    ({"nonsense": 1}, 400, "nonsense"),
    ({"max_length": 0}, 400, "max_length"),
    ({"max_length": "80"}, 400, "max_length"),
    ({"max_length": 5, "max_tokens": 6}, 400, "max_tokens"),
    ({"max_length": 5, "min_tokens": 6}, 400, "min_tokens"),
    ({"max_context_length": -1}, 400, "max_context_length"),
    ({"n": 0}, 400, "n"),
    ({"stop_sequence": "x"}, 400, "stop_sequence"),
    ({"stop_sequence": [""]}, 400, "stop_sequence[0]"),
    ({"temperature": -1}, 400, "temperature"),
    ({"rep_pen": 0}, 400, "rep_pen"),
    ({"sampler_order": [0, 1]}, 400, "sampler_order"),
    ({"sampler_order": [0, 1, 2, 3, 4, 5, 7]}, 400, "sampler_order"),
    ({"typical": 2}, 400, "typical"),
    ({"images": ["aGk="]}, 400, "images"),
    ({"banned_tokens": [""]}, 400, "banned_tokens[0]"),
    ({"logprobs": "yes"}, 400, "logprobs"),
    ({"prompt_logprobs": 1}, 400, "prompt_logprobs"),
    ({"singleline": True}, 400, "singleline"),
    *(({name: True}, 400, name) for name in ("frmtadsnsp", "frmtrmblln", "frmtrmspch", "frmttriminc")),
    ({"grammar": '{"type": '}, 400, "grammar"),
    ({"logit_bias": {"5": "-1000"}}, 400, "logit_bias"),
    ({"genkey": 5}, 400, "genkey"),
]


def answers(path: str, bodies: list[dict]) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with http_client(core) as client:
            return [await client.post(path, json=body) for body in bodies]

    core = FakeCore()
    replies = asyncio.run(run())
    assert not core.streams
    return replies


OPENAI_ROUTES = [
    ("/v1/completions", [({**COMPLETION, **bad}, status, param) for bad, status, param in BOTH + COMPLETIONS_ONLY]),
    ("/v1/chat/completions", [({**CHAT, **bad}, status, param) for bad, status, param in BOTH + CHAT_ONLY]),
]


@pytest.mark.parametrize(("path", "cases"), OPENAI_ROUTES, ids=["completions", "chat"])
def test_openai_refusals_name_the_field(path, cases):
    for (body, status, param), reply in zip(cases, answers(path, [body for body, *_ in cases]), strict=True):
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (status, param), body
        assert error["message"].startswith(param), body
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/latest/generate", "/api/extra/generate/stream"])
def test_kobold_refusals_name_the_field(path):
    bodies = [{"prompt": "hi", **bad} for bad, *_ in KOBOLD]
    for (_, status, param), body, reply in zip(KOBOLD, bodies, answers(path, bodies), strict=True):
        detail = reply.json()["detail"]
        assert (reply.status_code, detail["param"], detail["type"]) == (status, param, "bad_input"), body
        assert detail["msg"].startswith(param), body


def test_a_stream_of_several_choices_is_refused_on_kobold():
    reply = ask(FakeCore(), "POST", "/api/extra/generate/stream", json={"prompt": "hi", "n": 2})
    assert (reply.status_code, reply.json()["detail"]["param"]) == (400, "n")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": "x" * 200}, "context_length_exceeded"),
        ({"guidance_scale": 2}, "unsupported_field"),
        ({"q": 1}, "unknown_field"),
        ({"stream": True, "stream_options": {"q": 1}}, "unknown_field"),
        ({"stream": True, "stream_options": 1}, None),
    ],
)
def test_codes(body, code):
    reply = ask(FakeCore(), "POST", "/v1/completions", json={**COMPLETION, **body})
    assert reply.json()["error"]["code"] == code


def test_an_unbuilt_field_says_what_to_send():
    reply = ask(FakeCore(), "POST", "/v1/completions", json={**COMPLETION, "guidance_scale": 2})
    assert reply.json()["error"]["message"] == "guidance_scale: not supported yet; leave it out or send 1"


BROKEN_JSON = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b'{"prompt": NaN}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "\xed\xa0\x80"}',
    b'{"prompt": "a"} trailing',
    b'{"temperature": 1e999}',
    b'{"a":' * 5000,
]


@pytest.mark.parametrize("raw", BROKEN_JSON, ids=range(len(BROKEN_JSON)))
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/api/v1/generate"])
def test_broken_json_is_refused(path, raw):
    reply = ask(FakeCore(), "POST", path, content=raw)
    assert reply.status_code == 400
    body = reply.json()
    assert "JSON" in (body["detail"]["msg"] if path.startswith("/api") else body["error"]["message"])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/api/v1/generate"])
def test_a_body_over_the_limit_is_413(path, chunked):
    raw = json.dumps({"prompt": "x" * 2000}).encode()

    async def in_chunks():
        for start in range(0, len(raw), 300):
            yield raw[start : start + 300]

    content = in_chunks() if chunked else raw
    reply = ask(FakeCore(), "POST", path, content=content, served_with={"max_body_bytes": 1000})
    assert reply.status_code == 413
    assert "1000 bytes" in reply.text


def test_a_model_without_template_refuses_chat():
    reply = ask(FakeCore(), "POST", "/v1/chat/completions", json=CHAT, served_with={"chat_template": None})
    assert reply.status_code == 400
    assert "chat template" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT), ("/api/v1/generate", {"prompt": "x"})],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "kind"), [(503, "service_unavailable"), (504, "timeout"), (500, "server_error")])
def test_a_refused_job_has_its_status_and_retry_after(path, body, stream, status, kind):
    core = FakeCore()
    core.refusal = JobError(status, "not now", retry_after_s=2.2)
    if stream and not path.startswith("/api"):
        body = {**body, "stream": True}
    reply = ask(core, "POST", path, json=body)
    assert (reply.status_code, reply.headers["retry-after"]) == (status, "3")
    error = reply.json()["detail"] if path.startswith("/api") else reply.json()["error"]
    assert error["type"].startswith(kind)


def test_no_depth_of_nesting_is_more_than_a_bad_request():
    async def statuses() -> list[int]:
        async with http_client(FakeCore()) as client:
            return [(await client.post("/v1/chat/completions", content=nested(depth))).status_code for depth in depths]

    def nested(depth: int) -> bytes:
        value = b'{"a":' * depth + b"1" + b"}" * depth
        call = b'{"function": {"name": "f", "arguments": %b}}' % value
        return b'{"messages": [{"role": "assistant", "content": "x", "tool_calls": [%b]}]}' % call

    depths = [*range(1, 900, 100), *range(900, 1010), 5000, 100_000]
    found = asyncio.run(statuses())
    assert found[0] == 200
    assert found[-1] == 400
    assert set(found) == {200, 400}


@pytest.mark.parametrize("name", ["sampler_order", "banned_tokens"])
def test_no_depth_of_nesting_in_a_string_is_more_than_a_bad_request(name):
    body = {**COMPLETION, name: "[" * 100_000}
    assert ask(FakeCore(), "POST", "/v1/completions", json=body).status_code == 400


def test_what_the_client_sent_is_quoted_within_limits(caplog):
    caplog.set_level("INFO", "isthmus.router")
    for body in ({"x\ny" * 9999: 1}, {**COMPLETION, "model": "m" * 99999}):
        reply = ask(FakeCore(), "POST", "/v1/completions", json=body)
        assert len(reply.content) < 2500
    assert "x\ny" not in caplog.text
