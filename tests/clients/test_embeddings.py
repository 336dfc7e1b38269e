"""Embeddings and rankings, by every client that asks for them."""

import math
import struct
from base64 import b64decode
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import litellm
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from openai import OpenAI

TEXTS = ["The cat sat.", "A dog ran away.", "né🎉"]
KEY, MODEL = "sk-good", "tiny"


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0) as made:
        yield made


@pytest.fixture
def vectors(client: OpenAI) -> list[list[float]]:
    """What the others must get too: as numbers, in JSON."""
    answer = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert [one.index for one in answer.data] == [0, 1, 2]
    return [one.embedding for one in answer.data]


def same(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> bool:
    if [len(vector) for vector in found] != [len(vector) for vector in expected]:
        return False
    pairs = zip(chain(*found), chain(*expected), strict=True)
    return all(math.isclose(one, other, abs_tol=1e-6) for one, other in pairs)


def test_openais_sdk_asks_for_base64(client: OpenAI, vectors: list[list[float]]) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    assert same([one.embedding for one in answer.data], vectors)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    packed: Any = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="base64").data[0].embedding
    assert same([struct.unpack(f"<{len(vectors[0])}f", b64decode(packed))], vectors[:1])


def test_vectors_have_length_1_and_differ(vectors: list[list[float]]) -> None:
    assert all(math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-6) for vector in vectors)
    assert not same(vectors[:1], vectors[1:2])


def test_fewer_dimensions_and_token_ids(client: OpenAI, vectors: list[list[float]]) -> None:
    cut = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=4).data[0].embedding
    length = math.hypot(*vectors[0][:4])
    assert same([cut], [[value / length for value in vectors[0][:4]]])
    ids = client.embeddings.create(model=MODEL, input=[[1, 2, 3], [4]])
    assert len(ids.data) == 2
    assert ids.usage.prompt_tokens == 4


def test_errors(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-bad").embeddings.create(model=MODEL, input=TEXTS)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model=MODEL, input=TEXTS, dimensions=100_000)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="x" * 5000)
    assert (refused.value.param, refused.value.code) == ("input", "context_length_exceeded")


def test_langchain(url: str, vectors: list[list[float]]) -> None:
    """As its documentation says for servers that are not OpenAI's: else it sends ids of OpenAI's tokens."""
    model = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key=KEY, model=MODEL, check_embedding_ctx_length=False, max_retries=0
    )
    assert same(model.embed_documents(TEXTS), vectors)
    assert same([model.embed_query(TEXTS[0])], vectors[:1])


def test_llama_index(url: str, vectors: list[list[float]]) -> None:
    model = OpenAILikeEmbedding(model_name=MODEL, api_base=f"{url}/v1", api_key=KEY, embed_batch_size=2, max_retries=0)
    assert same(model.get_text_embedding_batch(TEXTS), vectors)
    assert same([model.get_query_embedding(TEXTS[0])], vectors[:1])


@pytest.mark.parametrize("model", ["openai/tiny", "hosted_vllm/tiny"])
def test_litellm(url: str, model: str, vectors: list[list[float]]) -> None:
    asked = {"model": model, "api_base": f"{url}/v1", "api_key": KEY}
    assert same([one["embedding"] for one in litellm.embedding(input=TEXTS, **asked).data], vectors)
    with pytest.raises(litellm.BadRequestError):
        litellm.embedding(input=TEXTS, dimensions=100_000, **asked)


def test_litellm_ranks(url: str) -> None:
    ranked = litellm.rerank(
        model="hosted_vllm/tiny", api_base=url, api_key=KEY, query=TEXTS[0], documents=[TEXTS[1], TEXTS[0]], top_n=1
    )
    [best] = ranked.results
    assert (best["index"], round(best["relevance_score"], 5)) == (1, 1.0)


def test_litellm_ranks_what_is_left_of_documents(url: str) -> None:
    asked: Any = {"model": "hosted_vllm/tiny", "api_base": url, "api_key": KEY, "query": "The cat"}
    ranked = litellm.rerank(**asked, documents=[TEXTS[1], "The cat" + "x" * 50], max_tokens_per_doc=7)
    best = ranked.results[0]
    assert (best["index"], round(best["relevance_score"], 5)) == (1, 1.0)
