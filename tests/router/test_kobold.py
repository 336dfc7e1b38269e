"""Kobold's routes: shapes and bytes as KoboldCpp's, and what its clients do with them."""

import asyncio
import re

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import JobError
from isthmus.tests.router.edge import TOKENIZER, ask, byte_tokenizer, http_client, ids, run, saying
from isthmus.text.chat_template import ChatTemplate

LITES_PATTERN = re.compile(r"^event: (.*)\ndata: (.*)(\r?\n){2}", re.MULTILINE)

SERVICE = {"name": "OpenAI API", "rel_url": "/v1", "rel_url ": "/v1", "documentation": "/docs", "version": "0.1.0"}
FACTS = {
    "/.well-known/serviceinfo": {
        "version": "0.2",
        "software": {"name": "Isthmus", "version": "0.1.0", "repository": "", "homepage": "", "logo": ""},
        "api": {
            "koboldai": {"name": "KoboldAI API", "rel_url": "/api", "documentation": "/docs", "version": "1.104"},
            "openai": SERVICE,
        },
    },
    "/api/extra/preloadstory": {},
    "/sdapi/v1/sd-models": [],
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
    assert [name for name, value in body.items() if value is True] == ["llm", "embeddings", "jinja"]


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
        "frmtadsnsp": False,
        "frmtrmblln": False,
        "frmtrmspch": False,
        "frmttriminc": False,
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
    assert run(counts()) == [
        {"value": 3, "ids": [256, a, b], "prompt": "ab"},
        {"value": 2, "ids": [a, b], "prompt": "ab"},
        {"value": 1, "ids": [256], "prompt": ""},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "a", "x": 1}, "x"),
    ],
)
def test_a_count_that_is_refused_is_minus_one(body, param):
    reply = ask(FakeCore(), "POST", "/api/extra/tokencount", json=body)
    assert (reply.status_code, reply.json()["value"], reply.json()["detail"]["param"]) == (400, -1, param)


def test_the_tokens_of_a_conversation_are_counted_with_its_template():
    messages = [{"role": "user", "content": "hi"}]
    body = ask(FakeCore(), "POST", "/api/extra/tokencount", json={"messages": messages}).json()
    assert body["prompt"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert body["value"] == len(body["ids"]) == len(ids(body["prompt"]))


def test_detokenize():
    tokens = [*ids("ab"), 258]
    shown = ask(FakeCore(), "POST", "/api/extra/detokenize", json={"ids": tokens}).json()
    hidden = ask(FakeCore(), "POST", "/api/extra/detokenize", json={"ids": tokens, "special": False}).json()
    assert shown == {"result": "ab<|im_end|>", "success": True}
    assert hidden == {"result": "ab", "success": True}
    wrong = ask(FakeCore(), "POST", "/api/extra/detokenize", json={"ids": [9999]})
    assert (wrong.status_code, wrong.json()["detail"]["param"]) == (400, "ids")


def test_a_schema_becomes_a_grammar_that_a_request_may_send():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    body = ask(FakeCore(), "POST", "/api/extra/json_to_grammar", json={"schema": schema}).json()
    assert body["success"] is True
    assert body["result"].startswith("root ::= ")
    asked = {"prompt": "x", "max_length": 5, "grammar": body["result"]}
    assert ask(saying("1"), "POST", "/api/v1/generate", json=asked).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "schema"),
        ({"schema": "x"}, "schema"),
        ({"schema": {"type": "text"}}, "schema.type"),
        ({"schema": {"properties": {"a": {"pattern": "b"}}}}, "schema.properties.a.pattern"),
        ({"schema": {}, "x": 1}, "x"),
    ],
)
def test_a_schema_that_is_no_grammar_is_no_success(body, param):
    reply = ask(FakeCore(), "POST", "/api/extra/json_to_grammar", json=body)
    told = reply.json()
    assert (reply.status_code, told["success"], told["result"], told["detail"]["param"]) == (400, False, "", param)


def test_the_version_says_whether_there_is_a_template():
    for template, jinja in ((ChatTemplate("x", {}), True), (None, False)):
        told = ask(FakeCore(), "GET", "/api/extra/version", served_with={"chat_template": template}).json()
        assert told["jinja"] is jinja


def test_soft_prompts_can_be_chosen_as_long_as_it_is_none():
    assert ask(FakeCore(), "PUT", "/api/latest/config/soft_prompt", json={"value": ""}).json() == {}
    wrong = ask(FakeCore(), "PUT", "/api/v1/config/soft_prompt", json={"value": "mine"})
    assert (wrong.status_code, wrong.json()["detail"]["param"]) == (400, "value")


@pytest.mark.parametrize("path", ["/api", "/api/v1", "/api/latest"])
def test_the_root_of_the_api_leads_to_its_description(path):
    reply = ask(FakeCore(), "GET", path)
    assert (reply.status_code, reply.headers["location"]) == (302, "/docs")


def test_placeholders_become_what_the_template_puts_around_turns():
    body: dict = {
        "memory": "{{[SYSTEM]}}S",
        "prompt": "{{[INPUT]}}U{{[OUTPUT]}}",
        "stop_sequence": ["{{[INPUT]}}", "END"],
        "replace_instruct_placeholders": True,
        "max_length": 20,
    }
    prompt, _ = prompt_of(body)
    assert prompt == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    said = {**body, "render_special": True}
    [result] = ask(saying("ok<|im_start|>user"), "POST", "/api/v1/generate", json=said).json()["results"]
    assert (result["text"], result["finish_reason"]) == ("ok", "stop")
    assert prompt_of({**body, "replace_instruct_placeholders": False})[0] == body["memory"] + body["prompt"]
    reply = ask(FakeCore(), "POST", "/api/v1/generate", json=body, served_with={"chat_template": None})
    assert (reply.status_code, reply.json()["detail"]["param"]) == (400, "replace_instruct_placeholders")


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
    assert unknown == {"success": "false", "done": "false"}
    assert aborted == {"success": "true", "done": "true"}
    assert result["text"].startswith(seen)
    assert (len(result["text"]) < 150, result["finish_reason"]) == (True, "length")
    assert core.num_running == 0


def test_the_text_of_an_ended_generation_can_be_recovered():
    async def go():
        async with http_client(saying("Once.")) as client:
            for key in ("KCPP1", ""):
                await client.post("/api/v1/generate", json={"prompt": "x", "genkey": key})
            checks = [
                await client.post("/api/extra/generate/check", json={"genkey": k}) for k in ("KCPP1", "KCPP2", "")
            ]
            return [reply.json()["results"][0]["text"] for reply in checks]

    assert run(go()) == ["Once.", "", "Once."]


async def aborted(client, core, generate, abort):
    """(answer to the abort, text of the generation) of one that runs when the abort comes."""
    running = asyncio.ensure_future(client.post("/api/extra/generate/stream", json=generate))
    num_before = len(core.streams)
    while len(core.streams) == num_before or not core.streams[-1].num_made:
        await asyncio.sleep(0.001)
    answer = (await client.post("/api/extra/abort", **abort)).json()
    running.cancel() if answer["success"] == "false" else await running
    return answer, (await running).text if answer["success"] == "true" else None


@pytest.mark.parametrize("genkey", ["", "KCPP1"])
@pytest.mark.parametrize("abort", [{}, {"json": {}}, {"json": {"genkey": ""}}])
def test_abort_without_a_key_ends_the_only_generation_of_its_client(genkey, abort):
    core = FakeCore(step_s=0.005)

    async def go():
        async with http_client(core) as client:
            return await aborted(client, core, {"prompt": "ab", "genkey": genkey}, abort)

    answer, text = run(go())
    assert answer == {"success": "true", "done": "true"}
    assert text.endswith('event: message\ndata: {"token": "", "finish_reason": "length"}\n\n')
    assert core.num_running == 0


def test_abort_without_a_key_leaves_several_with_keys_alone():
    core = FakeCore(step_s=0.005)

    async def go():
        async with http_client(core) as client:
            bodies = [{"prompt": "ab", "max_length": 20, "genkey": f"KCPP{i}"} for i in range(2)]
            running = [asyncio.ensure_future(client.post("/api/v1/generate", json=body)) for body in bodies]
            while core.num_running < 2:
                await asyncio.sleep(0.001)
            abort = (await client.post("/api/extra/abort")).json()
            return abort, [len((await reply).json()["results"][0]["text"]) for reply in running]

    assert run(go()) == ({"success": "false", "done": "true"}, [20, 20])


def test_an_abort_that_overtakes_its_generation_is_remembered():
    core = FakeCore()

    async def go():
        async with http_client(core) as client:
            entered, go_on = asyncio.Event(), asyncio.Event()

            async def slow_body():
                yield b'{"prompt": "ab", "genkey": "KCPP1"'
                entered.set()
                await go_on.wait()
                yield b"}"

            running = asyncio.ensure_future(client.post("/api/v1/generate", content=slow_body()))
            await entered.wait()
            answer = (await client.post("/api/extra/abort", json={"genkey": "KCPP1"})).json()
            go_on.set()
            first = (await running).json()["results"][0]
            again = await client.post("/api/v1/generate", json={"prompt": "ab", "max_length": 3, "genkey": "KCPP1"})
            return answer, first["text"], first["finish_reason"], again.json()["results"][0]["text"]

    assert run(go()) == ({"success": "true", "done": "false"}, "", "length", "aba")


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


@pytest.mark.parametrize("sent", [{"5": -1000, "6": 101.5, "7": 3}, [[5, -1000], [6, 101.5], [7, 3]]])
def test_biases_are_cut_to_what_they_can_be(sent):
    core = saying("ok")
    assert ask(core, "POST", "/api/v1/generate", json={"prompt": "x", "logit_bias": sent}).status_code == 200
    assert core.streams[0].job.params.logit_bias == {5: -100, 6: 100, 7: 3}


@pytest.mark.parametrize("path", ["/api/extra/abort", "/api/extra/generate/check", "/api/extra/last_logprobs"])
def test_a_genkey_that_is_null_is_left_out(path):
    without, null = (ask(FakeCore(), "POST", path, json=body) for body in ({}, {"genkey": None}))
    assert (null.status_code, null.content) == (200, without.content)


@pytest.mark.parametrize("path", ["/api/extra/abort", "/api/extra/generate/check"])
def test_a_wrong_genkey_is_refused(path):
    reply = ask(FakeCore(), "POST", path, json={"genkey": 5})
    assert (reply.status_code, reply.json()["detail"]["param"]) == (400, "genkey")
