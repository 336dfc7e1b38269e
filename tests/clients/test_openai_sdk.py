"""OpenAI's own SDK: chat, completions and responses."""

import contextlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

KEY, MODEL = "sk-good", "tiny"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0) as made:
        yield made


def asked(text: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": f"Say: {text}"}]}


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "alias"]
    assert client.models.retrieve("alias").owned_by == "isthmus"


def test_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(**asked("Hello."))
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello.", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7


def test_a_streamed_chat_with_usage(client: OpenAI) -> None:
    *chunks, last = client.chat.completions.create(**asked("né🎉"), stream=True, stream_options={"include_usage": True})
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "n", "é", "🎉", ""]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len("né🎉".encode()) + 1


def test_several_choices_logprobs_and_a_stop_string(client: OpenAI) -> None:
    answer = client.chat.completions.create(**asked("abc. || def."), n=2, logprobs=True, top_logprobs=2, stop=["."])
    assert [choice.message.content for choice in answer.choices] == ["abc", "def"]
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_max_tokens_cut_an_answer(client: OpenAI) -> None:
    [choice] = client.chat.completions.create(**asked("abc"), max_completion_tokens=2).choices
    assert (choice.message.content, choice.finish_reason) == ("ab", "length")


def test_a_tool_is_called_and_its_result_answered(client: OpenAI) -> None:
    messages: list[Any] = asked(CALL)["messages"]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Paris"}')
    result = {"role": "tool", "tool_call_id": call.id, "content": "Say: Rain."}
    messages += [choice.message, result]
    again = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    assert again.choices[0].message.content == "Rain."


def test_a_streamed_call_of_a_tool(client: OpenAI) -> None:
    with client.chat.completions.stream(**asked("Well. " + CALL), tools=[TOOL]) as stream:
        kinds = {event.type for event in stream}
        [choice] = stream.get_final_completion().choices
    assert {"content.delta", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert choice.message.content == "Well."
    [call] = choice.message.tool_calls or []
    assert call.function.arguments == '{"city": "Paris"}'


class City(BaseModel):
    name: str
    people: int


def test_an_answer_of_a_type(client: OpenAI) -> None:
    answer = client.chat.completions.parse(**asked('{"name": "Paris", "people": 2}'), response_format=City)
    assert answer.choices[0].message.parsed == City(name="Paris", people=2)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's, of what it has parsed itself
def test_an_answer_of_a_type_can_be_sent_back(client: OpenAI) -> None:
    text, then = '{"name": "Paris", "people": 2}', asked("Hello.")["messages"]
    said: Any = client.chat.completions.parse(**asked(text), response_format=City).choices[0].message
    again = client.chat.completions.create(model=MODEL, messages=[said, *then])
    assert again.choices[0].message.content == "Hello."
    parsed: Any = client.responses.parse(model=MODEL, input="Say: " + text, text_format=City)
    assert client.responses.create(model=MODEL, input=[*parsed.output, *then]).output_text == "Hello."


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["Say: a", "Say: bc"], logprobs=1, max_tokens=20)
    assert [choice.text for choice in answer.choices] == ["a", "bc"]
    assert [choice.logprobs and choice.logprobs.tokens for choice in answer.choices] == [["a"], ["b", "c"]]
    stream = client.completions.create(model=MODEL, prompt="Say: a\nb", stop="\n", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "a"


def test_responses(client: OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Say: Hello.", instructions="Be kind.")
    assert (answer.status, answer.output_text) == ("completed", "Hello.")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 7
    counted = client.responses.input_tokens.count(model=MODEL, input="Say: Hello.", instructions="Be kind.")
    assert counted.input_tokens == answer.usage.input_tokens
    parsed = client.responses.parse(model=MODEL, input='Say: {"name": "Paris", "people": 2}', text_format=City)
    assert parsed.output_parsed == City(name="Paris", people=2)


def test_streamed_responses_with_a_tool(client: OpenAI) -> None:
    tool: Any = {"type": "function", "strict": False, **TOOL["function"]}
    with client.responses.stream(model=MODEL, input="Say: " + CALL, tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        [call] = stream.get_final_response().output
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.function_call_arguments.delta" in kinds
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("weather", '{"city": "Paris"}')
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Say: Rain."}
    turns: list[Any] = [call, call.model_dump()]
    for turn in turns:
        again = client.responses.create(model=MODEL, input=[turn, result], tools=[tool])
        assert again.output_text == "Rain."


def test_a_wrong_key(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        client.with_options(api_key="sk-bad").chat.completions.create(**asked("Hello."))
    assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"temperature": -1}, "temperature", None),
        ({"extra_body": {"temprature": 1}}, "temprature", "unknown_field"),
        ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages", "context_length_exceeded"),
    ],
)
def test_bad_fields_are_named(client: OpenAI, changes: dict[str, Any], param: str, code: str | None) -> None:
    with pytest.raises(openai.BadRequestError, match=param) as refused:
        client.chat.completions.create(**{**asked("Hello."), **changes})
    assert (refused.value.param, refused.value.code) == (param, code)


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(**{**asked("Hello."), "model": "gpt-9"})


def test_too_many_requests(client: OpenAI) -> None:
    spent = client.with_options(api_key="sk-spent")
    with contextlib.suppress(openai.RateLimitError):
        spent.chat.completions.create(**asked("Hello."))
    with pytest.raises(openai.RateLimitError) as refused:
        spent.chat.completions.create(**asked("Hello."))
    assert int(refused.value.response.headers["retry-after"]) > 0
