"""LlamaIndex's OpenAILike: chats, completions, tools."""

from typing import Any

import openai
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def llm(url: str, **changes: Any) -> OpenAILike:
    given = {"model": "tiny", "api_base": f"{url}/v1", "api_key": "sk-good", "max_retries": 0}
    return OpenAILike(**{**given, "is_chat_model": True, "is_function_calling_model": True, **changes})


def say(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=f"Say: {text}")]


def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


def test_a_chat(url: str) -> None:
    answer = llm(url).chat(say("Hello."))
    assert answer.message.content == "Hello."
    assert answer.additional_kwargs["completion_tokens"] == 7


def test_a_streamed_chat(url: str) -> None:
    *_, last = llm(url).stream_chat(say("né🎉"))
    assert last.message.content == "né🎉"


def test_completions(url: str) -> None:
    plain = llm(url, is_chat_model=False, max_tokens=100)
    assert plain.complete("Say: Hello.").text == "Hello."
    *_, last = plain.stream_complete("Say: Hello.")
    assert last.text == "Hello."


def test_logprobs_and_stop(url: str) -> None:
    answer = llm(url, logprobs=True, top_logprobs=1).chat(say("ab."), stop=["."])
    assert answer.message.content == "ab"
    assert answer.logprobs is not None
    assert [len(top) for top in answer.logprobs] == [1, 1]  # it keeps the likeliest alone


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called(url: str, streamed: bool) -> None:
    model, tool = llm(url), FunctionTool.from_defaults(fn=weather)
    if streamed:
        *_, answer = model.stream_chat_with_tools([tool], user_msg="Say: " + CALL)
    else:
        answer = model.chat_with_tools([tool], user_msg="Say: " + CALL)
    [call] = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Paris"})


def test_errors(url: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        llm(url, api_key="sk-bad").chat(say("Hello."))
    with pytest.raises(openai.BadRequestError, match="top_p"):
        llm(url).chat(say("Hello."), top_p=-1)
