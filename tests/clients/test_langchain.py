"""langchain-openai: ChatOpenAI and OpenAI."""

import asyncio
from typing import Any

import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Say: Rain in {city}."


def chat(url: str, **changes: Any) -> ChatOpenAI:
    return ChatOpenAI(**{"base_url": f"{url}/v1", "api_key": "sk-good", "model": "tiny", "max_retries": 0, **changes})


def test_a_chat(url: str) -> None:
    answer = chat(url).invoke("Say: Hello.")
    assert answer.content == "Hello."
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 7


def test_a_streamed_chat_with_usage(url: str) -> None:
    chunks = list(chat(url, stream_usage=True).stream("Say: né🎉"))
    whole = sum(chunks[1:], chunks[0])
    assert whole.content == "né🎉"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == len("né🎉".encode()) + 1


def test_an_asynchronous_chat(url: str) -> None:
    async def use() -> list[Any]:
        return await chat(url).abatch(["Say: a", "Say: b"])

    assert [answer.content for answer in asyncio.run(use())] == ["a", "b"]


def test_choices_logprobs_and_stop(url: str) -> None:
    result = chat(url, n=2, logprobs=True, stop=["."]).generate([[HumanMessage("Say: ab. || cd.")]])
    assert [choice.text for choice in result.generations[0]] == ["ab", "cd"]
    for choice in result.generations[0]:
        assert choice.generation_info is not None
        assert "".join(t["token"] for t in choice.generation_info["logprobs"]["content"]) == choice.text


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_its_result_answered(url: str, streamed: bool) -> None:
    able = chat(url, streaming=streamed).bind_tools([weather])
    question = HumanMessage("Say: " + CALL)
    answer = able.invoke([question])
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert able.invoke([question, answer, result]).content == "Rain in Paris."


class City(BaseModel):
    name: str
    people: int


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_structured_output(url: str, method: Any) -> None:
    said = '{"name": "Paris", "people": 2}'
    if method == "function_calling":
        said = f'<tool_call>{{"name": "City", "arguments": {said}}}</tool_call>'
    typed = chat(url).with_structured_output(City, method=method)
    assert typed.invoke("Say: " + said) == City(name="Paris", people=2)


def test_the_responses_api(url: str) -> None:
    answer = chat(url, use_responses_api=True).invoke("Say: Hello.")
    assert answer.text == "Hello."
    chunks = list(chat(url, use_responses_api=True).stream("Say: Hello."))
    assert sum(chunks[1:], chunks[0]).text == "Hello."


def test_completions(url: str) -> None:
    llm = OpenAI(base_url=f"{url}/v1", api_key="sk-good", model="tiny", max_tokens=100, max_retries=0)
    assert llm.invoke("Say: Hello.") == "Hello."
    assert llm.invoke("Say: a#b", stop=["#"]) == "a"
    assert "".join(llm.stream("Say: Hello.")) == "Hello."


def test_errors(url: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        chat(url, api_key="sk-bad").invoke("Say: Hello.")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat(url, temperature=-1).invoke("Say: Hello.")
    with pytest.raises(ContextOverflowError):
        chat(url).invoke("x" * 5000)
