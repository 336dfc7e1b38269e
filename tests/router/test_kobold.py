"""Kobold's routes: shapes and bytes as KoboldCpp's, and what its clients do with them."""

import asyncio
import re

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import JobError
from isthmus.tests.router.edge import TOKENIZER, ask, byte_tokenizer, http_client, ids, run, saying

LITES_PATTERN = re.compile(r"^event: (.*)\ndata: (.*)(\r?\n){2}", re.MULTILINE)

FACTS = {
    "/api/v1/model": {"result": "koboldcpp/tiny"},
    "/api/latest/model": {"result": "koboldcpp/tiny"},
    "/api/v1/info": {"result": "Isthmus", "version": "0.1.0", "model": "tiny", "max_context_length": 200},
    "/api/v1/info/version": {"result": "1.2.5"},
    "/api/v1/config/max_length": {"value": 160},
    "/api/v1/config/max_context_length": {"value": 200},
    "/api/latest/config/soft_prompt": {"value": ""},
    "/api/latest/config/soft_prompts_list": {"values": []},
    "/api/extra/true_max_context_length": {"value": 200},
}


@pytest.mark.parametrize("path", FACTS)
def test_facts(path):
    reply = ask(FakeCore(), "GET", path)
    assert (reply.status_code, reply.json()) == (200, FACTS[path])


def test_version_promises_no_more_than_there_is():
    body = ask(FakeCore(), "GET", "/api/extra/version").json()
    assert body["result"] == "KoboldCpp"
    assert body["version"] == "1.104"
    assert [name for name, value in body.items() if value is True] == ["llm"]


def test_generate():
    core = saying("Once.")
    reply = ask(core, "POST", "/api/v1/generate", json={"prompt": "Say"})
    assert reply.json() == {
        "results": [
            {
                "text": "Once.",
                "tool_calls": [],
                "finish_reason": "stop",
                "logprobs": None,
                "prompt_tokens": 3,
                "completion_tokens": 6,
            }
        ]
    }
    params = core.streams[0].job.params
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.7, 100, 0.9, 1.0)


def test_several_choices_are_several_results():
    reply = ask(saying("a", "b"), "POST", "/api/latest/generate", json={"prompt": "x", "n": 2})
    assert [result["text"] for result in reply.json()["results"]] == ["a", "b"]


def test_stream_to_the_byte():
    core = saying('a"\né')
    reply = ask(core, "POST", "/api/extra/generate/stream", json={"prompt": "x", "max_length": 4})
    assert reply.content == (
        b'event: message\ndata: {"token": "a", "finish_reason": null}\n\n'
        b'event: message\ndata: {"token": "\\"", "finish_reason": null}\n\n'
        b'event: message\ndata: {"token": "\\n", "finish_reason": null}\n\n'
        b'event: message\ndata: {"token": "\xef\xbf\xbd", "finish_reason": "length"}\n\n'
    )
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"


def test_lites_pattern_reads_the_stream():
    reply = ask(saying("ab"), "POST", "/api/extra/generate/stream", json={"prompt": "x"})
    found = [match.group(1, 2) for match in LITES_PATTERN.finditer(reply.text)]
    assert [event for event, _ in found] == ["message"] * 3
    assert found[-1][1] == '{"token": "", "finish_reason": "stop"}'


@pytest.mark.parametrize(
    ("trim", "expected"), [({}, "ab"), ({"trim_stop": True}, "ab"), ({"trim_stop": False}, "abEND")]
)
def test_stop_sequence(trim, expected):
    body = {"prompt": "x", "stop_sequence": ["END"], **trim}
    [result] = ask(saying("abENDcd"), "POST", "/api/v1/generate", json=body).json()["results"]
    assert (result["text"], result["finish_reason"]) == (expected, "stop")


def prompt_of(body: dict, **changes) -> tuple[str, int | None]:
    """(the prompt the core was given, its max_tokens)."""
    core = saying("ok")
    reply = ask(core, "POST", "/api/v1/generate", json=body, served_with=changes)
    assert reply.status_code == 200, reply.text
    job = core.streams[0].job
    return TOKENIZER.decode(job.prompt_ids, skip_special_tokens=False), job.params.max_tokens


def test_a_context_over_the_limit_is_cut_from_the_left_and_memory_stays():
    text = "".join(chr(ord("a") + i % 26) for i in range(300))
    assert prompt_of({"prompt": text, "max_length": 50}) == (text[-150:], 50)
    assert prompt_of({"prompt": text, "memory": "MEM", "max_length": 50}) == ("MEM" + text[-147:], 50)
    assert prompt_of({"prompt": "tail", "memory": text, "max_length": 50}) == (text[-150:], 50)
    assert prompt_of({"prompt": "tail", "memory": "MEM"}) == ("MEMtail", 160)
    assert prompt_of({"prompt": text, "max_length": 50, "max_context_length": 100}) == (text[-50:], 50)


def test_lengths_are_cut_to_the_context():
    assert prompt_of({"prompt": "x", "max_length": 9999})[1] == 160
    assert prompt_of({"prompt": "x", "max_length": 9999, "max_context_length": 9999})[1] == 160
    assert prompt_of({"prompt": "x", "max_length": 80, "max_context_length": 50})[1] == 40
    assert prompt_of({"prompt": "abc", "max_context_length": 2}) == ("c", 1)


def test_bos_is_there_once_and_survives_the_cut():
    bos = byte_tokenizer(bos=True)
    assert prompt_of({"prompt": "ab", "max_length": 5}, tokenizer=bos)[0] == "<|bos|>ab"
    assert prompt_of({"prompt": "<|bos|>ab", "memory": "M"}, tokenizer=bos)[0] == "<|bos|>Mab"
    assert prompt_of({"prompt": "x" * 300, "max_length": 100}, tokenizer=bos)[0] == "<|bos|>" + "x" * 99


def test_what_lite_sends_is_understood():
    body = {
        "n": 1,
        "max_context_length": 8192,
        "max_length": 20,
        "rep_pen": 1,
        "temperature": 0.75,
        "top_p": 0.92,
        "top_k": 100,
        "top_a": 0,
        "typical": 1,
        "tfs": 1,
        "rep_pen_range": 360,
        "rep_pen_slope": 0.7,
        "sampler_order": [6, 0, 1, 3, 4, 2, 5],
        "memory": "",
        "trim_stop": True,
        "genkey": "KCPP1234",
        "min_p": 0,
        "dynatemp_range": 0,
        "dynatemp_exponent": 1,
        "smoothing_factor": 0,
        "nsigma": 0,
        "banned_tokens": [],
        "render_special": False,
        "logprobs": False,
        "replace_instruct_placeholders": True,
        "presence_penalty": 0,
        "logit_bias": {},
        "stop_sequence": ["\nUser:"],
        "use_default_badwordsids": False,
        "bypass_eos": False,
        "sampler_seed": -1,
        "images": [],
        "audio": [],
        "adaptive_target": -1,
        "adaptive_decay": 0.9,
        "guidance_scale": 1,
        "negative_prompt": "",
        "grammar": "",
        "quiet": True,
        "prompt": "x",
    }
    reply = ask(saying("ok"), "POST", "/api/extra/generate/stream", json=body)
    assert reply.status_code == 200, reply.text


def test_what_sillytavern_sends_is_understood():
    body = {
        "prompt": "x",
        "use_story": False,
        "use_memory": False,
        "use_authors_note": False,
        "use_world_info": False,
        "max_context_length": 4096,
        "max_length": 20,
        "rep_pen": 1.0,
        "rep_pen_range": 1024,
        "rep_pen_slope": 0.9,
        "temperature": 0.7,
        "tfs": 1,
        "top_a": 0,
        "top_k": 0,
        "top_p": 0.9,
        "min_p": 0.0,
        "typical": 1,
        "sampler_order": [6, 0, 1, 3, 4, 2, 5],
        "singleline": False,
        "use_default_badwordsids": False,
        "mirostat": 0,
        "mirostat_tau": 5,
        "mirostat_eta": 0.1,
        "grammar": "",
        "stop_sequence": ["\nYou:"],
    }
    assert ask(saying("ok"), "POST", "/api/v1/generate", json=body).status_code == 200


def test_bypass_eos_goes_on_past_the_end():
    core = FakeCore(lambda job, choice: iter([258, *ids("ab")]))
    body = {"prompt": "x", "max_length": 3, "bypass_eos": True, "render_special": True}
    [result] = ask(core, "POST", "/api/v1/generate", json=body).json()["results"]
    assert result["text"] == "<|im_end|>ab"


def test_tokencount():
    async def counts() -> list[dict]:
        async with http_client(FakeCore(), tokenizer=byte_tokenizer(bos=True)) as client:
            bodies = [{"prompt": "ab"}, {"prompt": "ab", "special": False}, {"prompt": ""}]
            return [(await client.post("/api/extra/tokencount", json=body)).json() for body in bodies]

    a, b = ids("ab")
    assert run(counts()) == [{"value": 3, "ids": [256, a, b]}, {"value": 2, "ids": [a, b]}, {"value": 1, "ids": [256]}]


def test_check_shows_the_text_so_far_and_abort_ends_it_with_what_there_is():
    core = FakeCore(step_s=0.01)

    async def go():
        async with http_client(core) as client:
            generate = {"prompt": "ab", "max_length": 150, "genkey": "KCPP1"}
            running = asyncio.ensure_future(client.post("/api/v1/generate", json=generate))
            seen = ""
            while len(seen) < 3:
                await asyncio.sleep(0.005)
                reply = await client.post("/api/extra/generate/check", json={"genkey": "KCPP1"})
                seen = reply.json()["results"][0]["text"]
            other = (await client.post("/api/extra/generate/check", json={"genkey": "KCPP2"})).json()
            unknown = (await client.post("/api/extra/abort", json={"genkey": "KCPP2"})).json()
            aborted = (await client.post("/api/extra/abort", json={"genkey": "KCPP1"})).json()
            return seen, other, unknown, aborted, (await running).json()["results"][0]

    seen, other, unknown, aborted, result = run(go())
    assert "ababab".startswith(seen[:6])
    assert other == {"results": [{"text": ""}]}
    assert unknown == {"success": "false", "done": "true"}
    assert aborted == {"success": "true", "done": "true"}
    assert result["text"].startswith(seen)
    assert (len(result["text"]) < 150, result["finish_reason"]) == (True, "length")
    assert core.num_running == 0


def test_abort_without_a_body_ends_what_was_sent_without_a_genkey():
    core = FakeCore(step_s=0.01)

    async def go():
        async with http_client(core) as client:
            stream = asyncio.ensure_future(client.post("/api/extra/generate/stream", json={"prompt": "ab"}))
            while not core.streams:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.03)
            abort = await client.post("/api/extra/abort")
            check = await client.get("/api/extra/generate/check")
            return abort.json(), check.json(), (await stream).text

    abort, _, text = run(go())
    assert abort["success"] == "true"
    assert text.endswith('event: message\ndata: {"token": "", "finish_reason": "length"}\n\n')


def test_an_error_in_a_stream_keeps_to_lites_pattern():
    def script(job, choice):
        yield from ids("a")
        raise JobError(500, "the worker died")

    reply = ask(FakeCore(script), "POST", "/api/extra/generate/stream", json={"prompt": "x"})
    assert reply.content == (
        b'event: message\ndata: {"token": "a", "finish_reason": null}\n\n'
        b'event: message\ndata: {"token":"","finish_reason":"error",'
        b'"detail":{"msg":"the worker died","type":"server_error","param":null}}\n\n'
    )


@pytest.mark.parametrize("path", ["/api/extra/abort", "/api/extra/generate/check"])
def test_a_wrong_genkey_is_refused(path):
    reply = ask(FakeCore(), "POST", path, json={"genkey": 5})
    assert (reply.status_code, reply.json()["detail"]["param"]) == (400, "genkey")
