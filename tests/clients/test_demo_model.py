"""Every client before `isthmus serve` with the demo model: what it says is its own, held to grammars where asked."""

import json
from typing import Any

import litellm
from anthropic import Anthropic
from langchain_community.llms import KoboldApiLLM
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI
from pydantic import BaseModel, Field

QUESTION = "What is the capital of France?"
MODEL = "SmolLM2-135M-Instruct"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ONE_CALL: Any = {"tool_choice": "required", "parallel_tool_calls": False}


class Answer(BaseModel):
    capital: str = Field(max_length=20)


def test_openai(demo_url: str) -> None:
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    with OpenAI(api_key="none", base_url=f"{demo_url}/v1", max_retries=0) as client:
        whole = client.chat.completions.create(**asked, max_tokens=20)
        assert "Paris" in (whole.choices[0].message.content or "")
        chunks = client.chat.completions.create(**asked, max_tokens=20, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == whole.choices[0].message.content
        called = client.chat.completions.create(**asked, tools=[TOOL], **ONE_CALL, max_tokens=100)
        [call] = called.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
        parsed = client.chat.completions.parse(**asked, response_format=Answer, max_tokens=100)
        assert isinstance(parsed.choices[0].message.parsed, Answer)


def test_seeded_choices_are_the_same_again(demo_url: str) -> None:
    with OpenAI(api_key="none", base_url=f"{demo_url}/v1", max_retries=0) as client:
        asked: Any = {"model": MODEL, "prompt": "Once upon a time", "n": 2, "seed": 7, "max_tokens": 8, "logprobs": 2}
        first, again = client.completions.create(**asked), client.completions.create(**asked)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 2
    assert first.choices[0].logprobs is not None
    assert "".join(first.choices[0].logprobs.tokens or []) == texts[0]


def test_anthropic(demo_url: str) -> None:
    with Anthropic(api_key="none", base_url=demo_url, max_retries=0) as client:
        asked: Any = {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": QUESTION}]}
        with client.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
            assert "Paris" in "".join(stream.text_stream)


def test_langchain(demo_url: str) -> None:
    chat = ChatOpenAI(base_url=f"{demo_url}/v1", api_key="none", model=MODEL, temperature=0, max_tokens=20)
    assert "Paris" in chat.invoke(QUESTION).text
    kobold = KoboldApiLLM(endpoint=demo_url, max_length=8, temperature=0.1)
    assert kobold.invoke("Once upon a time,")


def test_litellm(demo_url: str) -> None:
    answer = litellm.completion(
        model=f"openai/{MODEL}",
        api_base=f"{demo_url}/v1",
        api_key="none",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=20,
    )
    assert "Paris" in answer.choices[0].message.content


def test_llama_index(demo_url: str) -> None:
    llm = OpenAILike(
        model=MODEL, api_base=f"{demo_url}/v1", api_key="none", is_chat_model=True, temperature=0, max_tokens=20
    )
    assert "Paris" in str(llm.chat([ChatMessage(role="user", content=QUESTION)]))
