"""LiteLLM, as its users name an OpenAI-compatible server."""

from typing import Any

import litellm
import pytest

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CHAT, TEXT = ("openai/tiny", "hosted_vllm/tiny"), "text-completion-openai/tiny"


def complete(url: str, text: str, **changes: Any) -> Any:
    asked = {"model": "openai/tiny", "messages": [{"role": "user", "content": text}], "num_retries": 0}
    return litellm.completion(**{**asked, "api_base": f"{url}/v1", "api_key": "sk-good", **changes})


@pytest.mark.parametrize("model", CHAT)
def test_a_chat(url: str, model: str) -> None:
    answer = complete(url, "Say: Hello.", model=model)
    assert answer.choices[0].message.content == "Hello."
    assert answer.usage.completion_tokens == 7


@pytest.mark.parametrize("model", CHAT)
def test_a_streamed_chat_with_usage(url: str, model: str) -> None:
    chunks = list(complete(url, "Say: né🎉", model=model, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "né🎉"
    rebuilt = litellm.stream_chunk_builder(chunks)
    assert rebuilt.usage.completion_tokens == len("né🎉".encode()) + 1


def test_choices_logprobs_and_stop(url: str) -> None:
    answer = complete(url, "Say: ab. || cd.", n=2, logprobs=True, top_logprobs=1, stop=["."])
    assert [choice.message.content for choice in answer.choices] == ["ab", "cd"]
    assert ["".join(t.token for t in choice.logprobs.content) for choice in answer.choices] == ["ab", "cd"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(url: str, stream: bool) -> None:
    answer = complete(url, "Say: " + CALL, tools=[TOOL], stream=stream)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Paris"}')
    assert answer.choices[0].finish_reason == "tool_calls"


def test_hints_to_a_cache(url: str) -> None:
    hint = {"cache_control": {"type": "ephemeral"}}
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief.", **hint}]}
    messages = [system, {"role": "user", "content": "Say: Hello.", **hint}]
    answer = complete(url, "", model="hosted_vllm/tiny", messages=messages, tools=[{**TOOL, **hint}])
    assert answer.choices[0].message.content == "Hello."


def test_completions(url: str) -> None:
    asked = {"model": TEXT, "api_base": f"{url}/v1", "api_key": "sk-good"}
    answer = litellm.text_completion(prompt="Say: Hello.", **asked)
    assert answer.choices[0].text == "Hello."
    stream = litellm.text_completion(prompt="Say: Hello.", stream=True, **asked)
    assert "".join(chunk.choices[0].text or "" for chunk in stream) == "Hello."


def test_anthropics_route(url: str) -> None:
    answer = complete(url, "Say: Hello.", model="anthropic/tiny", api_base=url)
    assert answer.choices[0].message.content == "Hello."


ERRORS = [
    ({"api_key": "sk-bad"}, litellm.AuthenticationError),
    ({"temperature": -1}, litellm.BadRequestError),
    ({"model": "openai/gpt-9"}, litellm.NotFoundError),
    ({"max_tokens": 5000}, litellm.ContextWindowExceededError),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, litellm.ContextWindowExceededError),
]


@pytest.mark.parametrize(("changes", "error"), ERRORS, ids=[error.__name__ for _, error in ERRORS])
def test_errors(url: str, changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        complete(url, "Say: Hello.", **changes)
