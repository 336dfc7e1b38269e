"""Scores of pairs, and documents in their order: by vectors, and by a model that reads pairs."""

import math
from dataclasses import replace
from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import ask, byte_tokenizer, http_client, ids, run
from isthmus.text.pooling_config import PoolingConfig

SCORES = ("/v1/score", "/score")
RERANKS = ("/v1/rerank", "/v2/rerank", "/rerank")
PAIRS = PoolingConfig("score", normalize=False)


def post(path: str, body: dict[str, Any], core: FakeCore | None = None, **changes: Any) -> Any:
    return ask(core or FakeCore(), "POST", path, json=body, served_with=changes)


def scores(reply: Any) -> list[float]:
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [(entry["index"], entry["object"]) for entry in data] == [(i, "score") for i in range(len(data))]
    return [entry["score"] for entry in data]


def cosine(one: str, other: str) -> float:
    """Of the fake core's vectors: counts of ids by their remainder of 8."""
    a, b = ([sum(token % 8 == i for token in ids(text)) for i in range(8)] for text in (one, other))
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("path", SCORES)
@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("cat", "act", [("cat", "act")]),
        ("cat", ["act", "dog"], [("cat", "act"), ("cat", "dog")]),
        (["cat"], ["act", "dog"], [("cat", "act"), ("cat", "dog")]),
        (["cat", "ox"], ["dog", "fox"], [("cat", "dog"), ("ox", "fox")]),
    ],
)
def test_scores_are_cosines(path: str, first: Any, second: Any, pairs: list[tuple[str, str]]) -> None:
    core = FakeCore()
    reply = post(path, {"model": "tiny", "text_1": first, "text_2": second}, core)
    assert scores(reply) == pytest.approx([cosine(*pair) for pair in pairs])
    body = reply.json()
    assert (body["object"], body["model"], body["id"][:6]) == ("list", "tiny", "score-")
    num_tokens = sum(len(stream.job.prompt_ids) for stream in core.streams)
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert len(core.streams) == (1 if len(first) == 1 or isinstance(first, str) else 2) + len(pairs)
    assert cosine("cat", "act") == pytest.approx(1)


@pytest.mark.parametrize("path", RERANKS)
def test_documents_come_in_order(path: str) -> None:
    documents = ["dog", {"text": "tac"}, "cut", "act"]
    reply = post(path, {"query": "cat", "documents": documents})
    assert reply.status_code == 200, reply.text
    results = reply.json()["results"]
    assert [result["index"] for result in results][:2] == [1, 3], "of equals the first"
    assert results == sorted(results, key=lambda result: -result["relevance_score"])
    assert results[0] == {"index": 1, "relevance_score": pytest.approx(1), "document": {"text": "tac"}}
    assert {result["index"] for result in results} == {0, 1, 2, 3}
    assert reply.json()["id"].startswith("rerank-")
    assert reply.json()["usage"]["prompt_tokens"] == 15


@pytest.mark.parametrize(("top_n", "count"), [(0, 3), (1, 1), (3, 3), (50, 3)])
def test_the_best_alone_and_without_their_texts(top_n: int, count: int) -> None:
    body = {"query": "cat", "documents": ["dog", "cut", "act"], "top_n": top_n, "return_documents": False}
    results = post("/v1/rerank", body).json()["results"]
    assert len(results) == count
    assert results[0] == {"index": 2, "relevance_score": pytest.approx(1)}


def test_a_model_for_pairs_reads_both() -> None:
    core = FakeCore()
    reply = post("/v1/score", {"text_1": "ab", "text_2": ["c", "de"]}, core, pooling=PAIRS)
    jobs = [stream.job for stream in core.streams]
    assert [list(job.prompt_ids) for job in jobs] == [ids("abc"), ids("abde")]
    assert {job.pooling for job in jobs} == {"score"}
    assert scores(reply) == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-4))])
    plain = replace(PAIRS, activation="identity")
    assert scores(post("/v1/score", {"text_1": "ab", "text_2": ["c", "de"]}, pooling=plain)) == [3, 4]
    body = {"query": "ab", "documents": ["c", "de" * 200], "truncate_prompt_tokens": 10}
    reply = post("/rerank", body, core, pooling=PAIRS)
    assert [result["index"] for result in reply.json()["results"]] == [1, 0]
    assert list(core.streams[-1].job.prompt_ids) == ids("ab" + "de" * 4)
    reply = post("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d"]}, core, pooling=PAIRS)
    assert [list(stream.job.prompt_ids) for stream in core.streams[-2:]] == [ids("ac"), ids("bd")]


NO_LIMITS = {"rank_fields": None, "max_chunks_per_doc": None, "max_tokens_per_doc": None}
LIMITS: list[tuple[dict[str, Any], str, str]] = [
    (NO_LIMITS, "c", "defg"),
    ({"max_tokens_per_doc": 3}, "c", "def"),
    ({"max_tokens_per_doc": 3, "truncate_prompt_tokens": 4}, "c", "def"),
    ({"max_tokens_per_doc": 9, "truncate_prompt_tokens": 4}, "c", "defg"),
]


@pytest.mark.parametrize(("limits", "first", "second"), LIMITS)
def test_documents_are_cut_to_so_many_tokens(limits: dict[str, Any], first: str, second: str) -> None:
    body = {"query": "query", "documents": ["c", "defg"], **limits}
    vectors, pairs = FakeCore(), FakeCore()
    assert post("/v2/rerank", body, vectors).status_code == 200
    num_query = limits.get("truncate_prompt_tokens", 5)
    assert [list(stream.job.prompt_ids) for stream in vectors.streams] == [
        ids("query"[:num_query]), ids(first), ids(second)
    ]  # fmt: skip
    if "truncate_prompt_tokens" not in limits:
        assert post("/v2/rerank", body, pairs, pooling=PAIRS).status_code == 200
        assert [list(stream.job.prompt_ids) for stream in pairs.streams] == [
            ids("query" + first),
            ids("query" + second),
        ]


def test_what_the_model_expects_around_a_document_is_not_counted() -> None:
    core, bos = FakeCore(), byte_tokenizer(bos=True)
    post("/v1/rerank", {"query": "q", "documents": ["abc"], "max_tokens_per_doc": 2}, core, tokenizer=bos)
    assert [list(stream.job.prompt_ids) for stream in core.streams] == [bos.encode("q"), bos.encode("ab")]


def test_of_a_pair_the_document_is_cut_by_whichever_limit_is_less() -> None:
    core = FakeCore()
    for total, per_document in ((8, 5), (20, 2)):
        limits = {"truncate_prompt_tokens": total, "max_tokens_per_doc": per_document}
        post("/v1/rerank", {"query": "query", "documents": ["abcdefg"], **limits}, core, pooling=PAIRS)
    assert [list(stream.job.prompt_ids) for stream in core.streams] == [ids("queryabc"), ids("queryab")]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/score", {"text_1": "x"}, "text_2"),
    ("/v1/score", {"text_1": ["x", "y"], "text_2": "z"}, "text_1"),
    ("/v1/score", {"text_1": ["x", "y"], "text_2": ["a", "b", "c"]}, "text_1"),
    ("/v1/score", {"text_1": [], "text_2": ["a"]}, "text_1"),
    ("/v1/score", {"text_1": "", "text_2": ["a"]}, "text_1"),
    ("/v1/score", {"text_1": "x", "text_2": ["a", ""]}, "text_2[1]"),
    ("/v1/score", {"text_1": "x", "text_2": ["a", "y" * 201]}, "text_2[1]"),
    ("/v1/score", {"text_1": "x", "text_2": ["a", 5]}, "text_2[1]"),
    ("/v1/score", {"text_1": "x", "text_2": ["a"] * 2048}, "text_2"),
    ("/v1/score", {"text_1": "x", "text_2": "a", "dimensions": 3}, "dimensions"),
    ("/v1/score", {"text_1": "x", "text_2": "a", "seed": 3}, "seed"),
    ("/v1/rerank", {"query": "x"}, "documents"),
    ("/v1/rerank", {"query": "x", "documents": []}, "documents"),
    ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
    ("/v1/rerank", {"query": ["x"], "documents": ["a"]}, "query"),
    ("/v1/rerank", {"query": "x", "documents": ["a", ""]}, "documents[1]"),
    ("/v1/rerank", {"query": "x", "documents": ["a"], "top_n": -1}, "top_n"),
    ("/v1/rerank", {"query": "x", "documents": ["a"], "max_chunks_per_doc": 3}, "max_chunks_per_doc"),
    ("/v1/rerank", {"query": "x", "documents": ["a"], "rank_fields": ["text"]}, "rank_fields"),
    ("/v1/rerank", {"query": "x", "documents": ["a"], "max_tokens_per_doc": 0}, "max_tokens_per_doc"),
    ("/v1/rerank", {"query": "x", "documents": ["a"] * 2049}, "documents"),
]


@pytest.mark.parametrize("pooling", [PoolingConfig(), PAIRS], ids=["vectors", "pairs"])
def test_what_is_wrong_is_named(pooling: PoolingConfig) -> None:
    core = FakeCore()

    async def use() -> None:
        async with http_client(core, pooling=pooling) as http:
            for path, body, param in BAD:
                reply = await http.post(path, json=body)
                assert reply.status_code == 400, body
                assert reply.json()["error"]["param"] == param, body

    run(use())
    assert core.streams == []


def test_a_first_text_that_leaves_no_room_for_the_second() -> None:
    body = {"text_1": "x" * 20, "text_2": "y", "truncate_prompt_tokens": 20}
    reply = post("/v1/score", body, pooling=PAIRS)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "truncate_prompt_tokens")
