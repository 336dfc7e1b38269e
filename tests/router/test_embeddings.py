"""POST /v1/embeddings through OpenAI's own client, and what that does not show."""

import asyncio
import struct
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import numpy as np
import openai
import pytest
from isthmus.router.fake_core import FAKE_HIDDEN_SIZE, FakeCore, made_up_vector
from isthmus.router.job import JobError
from isthmus.tests.router.edge import ask, byte_tokenizer, http_client, ids, run
from isthmus.text.pooling_config import PoolingConfig


def post(body: dict[str, Any], core: FakeCore | None = None, path: str = "/v1/embeddings", **changes: Any) -> Any:
    return ask(core or FakeCore(), "POST", path, json=body, served_with=changes)


def raw_vector(token_ids: Sequence[int]) -> np.ndarray:
    return np.frombuffer(made_up_vector(token_ids, FAKE_HIDDEN_SIZE), "<f4")


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def vectors(reply: Any) -> list[list[float]]:
    assert reply.status_code == 200, reply.text
    return [entry["embedding"] for entry in reply.json()["data"]]


@pytest.mark.parametrize("how", [{}, {"encoding_format": "float"}], ids=["base64, as the client has it", "float"])
def test_openais_client_reads_it(how: dict[str, Any]) -> None:
    core = FakeCore()

    async def use() -> Any:
        async with http_client(core) as http:
            client = openai.AsyncOpenAI(api_key="x", base_url="http://test/v1", http_client=http, max_retries=0)
            return await client.embeddings.create(model="alias", input=["hello", "wide world"], user="me", **how)

    answer = run(use())
    assert (answer.object, answer.model) == ("list", "alias")
    assert [(entry.object, entry.index) for entry in answer.data] == [("embedding", 0), ("embedding", 1)]
    for entry, text in zip(answer.data, ("hello", "wide world"), strict=True):
        np.testing.assert_allclose(entry.embedding, unit(raw_vector(ids(text))), rtol=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (15, 15)
    jobs = [stream.job for stream in core.streams]
    assert [(job.prompt_index, job.num_choices, job.params.max_tokens) for job in jobs] == [(0, 1, 0), (1, 1, 0)]
    assert {job.pooling for job in jobs} == {"last"}


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("ab", [ids("ab")]),
        (["ab", "c"], [ids("ab"), ids("c")]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([5.0, 6, 7.0], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
def test_the_four_forms_of_input(given: Any, prompts: list[list[int]]) -> None:
    core = FakeCore()
    reply = post({"input": given}, core)
    assert [list(stream.job.prompt_ids) for stream in core.streams] == prompts
    assert [entry["index"] for entry in reply.json()["data"]] == list(range(len(prompts)))
    assert reply.json()["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert reply.json()["model"] == "tiny"


def test_base64_is_little_endian_float32() -> None:
    reply = post({"input": "hello", "encoding_format": "base64"})
    raw = b64decode(reply.json()["data"][0]["embedding"])
    numbers = struct.unpack(f"<{FAKE_HIDDEN_SIZE}f", raw)
    assert list(numbers) == vectors(post({"input": "hello"}))[0]


@pytest.mark.parametrize("normalized", [True, False])
def test_normalisation_is_the_models_unless_asked_otherwise(normalized: bool) -> None:
    pooling = PoolingConfig("mean", normalize=normalized)
    plain, scaled = raw_vector(ids("hello")), unit(raw_vector(ids("hello")))
    for asked, right in [(None, scaled if normalized else plain), (True, scaled), (False, plain)]:
        [vector] = vectors(post({"input": "hello", "normalize": asked}, pooling=pooling))
        np.testing.assert_allclose(vector, right, rtol=1e-6)


@pytest.mark.parametrize("dimensions", [1, 3, FAKE_HIDDEN_SIZE])
def test_fewer_dimensions_are_the_first_ones_scaled_again(dimensions: int) -> None:
    [vector] = vectors(post({"input": "hello", "dimensions": dimensions}))
    assert len(vector) == dimensions
    cut = raw_vector(ids("hello"))[:dimensions]
    np.testing.assert_allclose(vector, unit(cut) if cut.any() else cut, rtol=1e-6)
    [vector] = vectors(post({"input": "hello", "dimensions": dimensions, "normalize": False}))
    np.testing.assert_allclose(vector, cut)


def test_special_tokens_are_added_as_the_tokenizer_does() -> None:
    core, bos = FakeCore(), byte_tokenizer(bos=True)
    post({"input": "hi"}, core, tokenizer=bos)
    post({"input": "hi", "add_special_tokens": False}, core, tokenizer=bos)
    post({"input": ids("hi")}, core, tokenizer=bos)
    with_bos, without, given = [list(stream.job.prompt_ids) for stream in core.streams]
    assert with_bos == [bos.bos_id, *ids("hi")]
    assert without == given == ids("hi")


@pytest.mark.parametrize("length", [200, 201])
def test_a_prompt_may_fill_the_context_and_no_more(length: int) -> None:
    for given in ("x" * length, [7] * length):
        reply = post({"input": given})
        assert reply.status_code == (200 if length == 200 else 400)
        if length > 200:
            error = reply.json()["error"]
            assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


@pytest.mark.parametrize(("asked", "kept"), [(-1, 200), (10, 10), (200, 200)])
def test_longer_ones_are_cut_where_that_is_asked_for(asked: int, kept: int) -> None:
    core, bos = FakeCore(), byte_tokenizer(bos=True)
    text = "".join(chr(97 + i % 26) for i in range(300))
    post({"input": text, "truncate_prompt_tokens": asked}, core, tokenizer=bos)
    post({"input": ids(text), "truncate_prompt_tokens": asked}, core, tokenizer=bos)
    cut_text, cut_ids = [list(stream.job.prompt_ids) for stream in core.streams]
    assert cut_text == [bos.bos_id, *ids(text)[: kept - 1]], "what the model expects stays"
    assert cut_ids == ids(text)[:kept]


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": ["x", ""]}, "input[1]"),
    ({"input": [[]]}, "input[0]"),
    ({"input": [1, "x"]}, "input[1]"),
    ({"input": ["x", 1]}, "input[1]"),
    ({"input": [True]}, "input[0]"),
    ({"input": 5}, "input"),
    ({"input": {"text": "x"}}, "input"),
    ({"input": [[5], [259]]}, "input[1]"),
    ({"input": [-1]}, "input"),
    ({"input": ["x"] * 2049}, "input"),
    ({"input": ["x", "y" * 201]}, "input[1]"),
    ({"input": "x", "dimensions": 0}, "dimensions"),
    ({"input": "x", "dimensions": 9}, "dimensions"),
    ({"input": "x", "dimensions": 1.5}, "dimensions"),
    ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
    ({"input": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"input": "x", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"input": "x", "truncate_prompt_tokens": 201}, "truncate_prompt_tokens"),
    ({"input": "x", "normalize": "yes"}, "normalize"),
    ({"input": "x", "temperature": 1}, "temperature"),
    ({"input": "x", "dynatemp_range": 1}, "dynatemp_range"),
    ({"input": "x", "prompt": "y"}, "prompt"),
    ({"input": "x", "truncate": True}, "truncate"),
    ({"input": "x", "priority": 1.5}, "priority"),
]


def test_what_is_wrong_is_named() -> None:
    core = FakeCore()

    async def use() -> None:
        async with http_client(core) as http:
            for body, param in BAD:
                reply = await http.post("/v1/embeddings", json=body)
                assert reply.status_code == 400, body
                assert reply.json()["error"]["param"] == param, body

    run(use())
    assert core.streams == []


def test_room_for_special_tokens_alone_is_refused() -> None:
    reply = post({"input": "hello", "truncate_prompt_tokens": 1}, tokenizer=byte_tokenizer(bos=True))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "truncate_prompt_tokens")


def test_an_unknown_model_and_a_model_for_pairs() -> None:
    assert post({"input": "x", "model": "gpt-9"}).status_code == 404
    reply = post({"input": "x"}, pooling=PoolingConfig("score"))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")


def test_refusals_and_failures_keep_their_status() -> None:
    core = FakeCore()
    core.refusal = JobError(503, "full", retry_after_s=2)
    reply = post({"input": "x"}, core)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")


def test_kobolds_route_cuts_by_itself() -> None:
    core = FakeCore()
    reply = post({"input": "x" * 300}, core, "/api/extra/embeddings")
    assert len(vectors(reply)) == 1
    assert [len(stream.job.prompt_ids) for stream in core.streams] == [200]
    reply = post({"input": "x" * 300, "truncate": False}, path="/api/extra/embeddings")
    assert (reply.status_code, reply.json()["detail"]["param"]) == (400, "input")


def test_a_client_that_leaves_cancels_all() -> None:
    core = FakeCore(step_s=30)

    async def use() -> None:
        async with http_client(core) as http:
            asking = asyncio.create_task(http.post("/v1/embeddings", json={"input": ["a", "b", "c"]}))
            while len(core.streams) < 3:
                await asyncio.sleep(0.001)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    run(use())
    assert all(stream.cancelled.is_set() for stream in core.streams)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"chat_template": None}], ids=["with a template", "without"])
def test_an_encoder_does_not_chat(path: str, body: dict[str, Any], changes: dict[str, Any]) -> None:
    core = FakeCore()
    reply = ask(core, "POST", path, json={"model": "tiny", **body}, served_with={"generates": False, **changes})
    assert reply.status_code == 400
    assert "the model tiny gives embeddings: it does not generate text" in reply.json()["error"]["message"]
    assert core.streams == []
