"""The demo model over HTTP from separate processes, asked with OpenAI's client: aggregated, and prefill and decode
apart with KV over the wire. Texts are compared with transformers' greedy continuation, and with each other."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from isthmus.tests.oracle import Reference, demo_reference
from isthmus.tests.serving import Serve, serving
from isthmus.text.resolve import resolve
from isthmus.text.tokenizer import Tokenizer

LONG = "An isthmus is a narrow strip of land that joins two larger ones. " * 6
PROMPTS = ["The capital of France is", LONG + "In short,", LONG + "The best known one is", "def add(a, b):\n"]
NUM_TOKENS = 16


@pytest.fixture(scope="module", params=["0", "1"], ids=["aggregated", "1P1D"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    with serving("--prefill", request.param, "--local-prefill-max-tokens", "0", "--dtype", "float32") as serve:
        assert serve.url
        yield serve


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serve.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def demo() -> Reference:
    return demo_reference()


@pytest.fixture(scope="module")
def greedy_texts(demo: Reference, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    tokenizer = Tokenizer.from_folder(resolve(str(demo.weights), tmp_path_factory.mktemp("text")).folder)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        with torch.inference_mode():
            output = demo.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=NUM_TOKENS,
                do_sample=False,
                eos_token_id=sorted(tokenizer.eos_ids),
                pad_token_id=0,
            )
        texts.append(tokenizer.decode(output[0, len(ids) :].tolist()))
    return texts


def transferred_bytes(serve: Serve) -> float:
    page = serve.metrics().decode()
    return sum(map(float, re.findall(r"^isthmus:kv_transfer_bytes_total\{.*\} (\S+)$", page, re.MULTILINE)))


def test_greedy_texts_are_those_of_transformers(serve: Serve, client: openai.OpenAI, greedy_texts: list[str]) -> None:
    def ask(prompt: str) -> str:
        model = client.models.list().data[0].id
        return (
            client.completions.create(model=model, prompt=prompt, max_tokens=NUM_TOKENS, temperature=0).choices[0].text
        )

    assert [ask(prompt) for prompt in PROMPTS] == greedy_texts  # one after the other
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(ask, PROMPTS)) == greedy_texts  # all at once, prefixes cached
    if serve.child("prefill-0") is not None:
        serve.wait(lambda: transferred_bytes(serve) > 0)


def test_chat_streamed_and_whole_agree(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct.Q4_1",
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_completion_tokens": 20,
        "seed": 5,
    }
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    (reason,) = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reason == whole.choices[0].finish_reason


def test_seeded_choices_differ_and_repeat(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "SmolLM2-135M-Instruct.Q4_1", "prompt": PROMPTS[0], "max_tokens": 12}
    first = client.completions.create(**request, n=3, seed=11, temperature=1.0)
    second = client.completions.create(**request, n=3, seed=11, temperature=1.0)
    assert [c.text for c in first.choices] == [c.text for c in second.choices]
    assert len({c.text for c in first.choices}) > 1
    assert [c.index for c in first.choices] == [0, 1, 2]


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    model = "SmolLM2-135M-Instruct.Q4_1"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model=model, prompt="x", temperature=-1)
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.BadRequestError, match="context length is") as caught:
        client.completions.create(model=model, prompt="word " * 9000, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"


def test_every_worker_is_empty_at_the_end(serve: Serve) -> None:
    def used() -> list[str]:
        page = serve.metrics().decode()
        return re.findall(r"^isthmus:kv_cache_usage_perc\{.*\} (\S+)$", page, re.MULTILINE)

    serve.wait(lambda: used() and set(used()) == {"0.0"})
