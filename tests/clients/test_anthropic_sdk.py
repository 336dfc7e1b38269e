"""Anthropic's own SDK."""

import contextlib
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, beta_tool
from pydantic import BaseModel

TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
def client(url: str) -> Iterator[Anthropic]:
    with Anthropic(api_key="sk-good", base_url=url, max_retries=0) as made:
        yield made


def asked(text: str) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 200, "messages": [{"role": "user", "content": f"Say: {text}"}]}


def test_a_message(client: Anthropic) -> None:
    answer = client.messages.create(**asked("Hello."), system="Be kind.", extra_body={"top_k": 5})
    [block] = answer.content
    assert block.type == "text"
    assert (block.text, answer.stop_reason, answer.usage.output_tokens) == ("Hello.", "end_turn", 7)
    counted = client.messages.count_tokens(model="tiny", messages=asked("Hello.")["messages"], system="Be kind.")
    assert counted.input_tokens == answer.usage.input_tokens


def test_a_streamed_message(client: Anthropic) -> None:
    with client.messages.stream(**asked("né🎉"), stop_sequences=["never"]) as stream:
        assert "".join(stream.text_stream) == "né🎉"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len("né🎉".encode()) + 1


def test_a_stop_sequence_and_max_tokens(client: Anthropic) -> None:
    stopped = client.messages.create(**asked("abc#def"), stop_sequences=["#"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "#")
    cut = client.messages.create(**{**asked("abc"), "max_tokens": 2})
    assert cut.stop_reason == "max_tokens"


def test_more_tokens_than_there_is_room_for(client: Anthropic) -> None:
    answer = client.messages.create(**{**asked("abc"), "max_tokens": 16_000})
    assert answer.stop_reason == "end_turn"


def test_a_tool_is_used_and_its_result_answered(client: Anthropic) -> None:
    messages: list[Any] = asked(CALL)["messages"]
    answer = client.messages.create(model="tiny", max_tokens=200, messages=messages, tools=[TOOL])
    [block] = answer.content
    assert block.type == "tool_use"
    assert (block.name, block.input, answer.stop_reason) == ("weather", {"city": "Paris"}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "Say: Rain."}
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    again = client.messages.create(model="tiny", max_tokens=200, messages=messages, tools=[TOOL])
    assert [block.type == "text" and block.text for block in again.content] == ["Rain."]


def test_what_the_sdk_has_made_of_an_answer_goes_back_as_dicts(client: Anthropic) -> None:
    messages: list[Any] = asked("Well. " + CALL)["messages"]
    answer = client.messages.create(model="tiny", max_tokens=200, messages=messages, tools=[TOOL])
    use = answer.content[-1]
    assert use.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "Say: Rain."}
    blocks: Any = [block.model_dump() for block in answer.content]
    messages += [{"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
    [text] = client.messages.create(model="tiny", max_tokens=200, messages=messages, tools=[TOOL]).content
    assert text.type == "text"
    assert text.text == "Rain."


def test_the_assistants_last_message_is_continued(client: Anthropic) -> None:
    messages: list[Any] = [*asked("x")["messages"], {"role": "assistant", "content": "Say: Hello."}]
    [block] = client.messages.create(model="tiny", max_tokens=200, messages=messages).content
    assert block.type == "text"
    assert block.text == "Hello.", "it is the end of the prompt, and no message is closed after it"


def test_a_streamed_use_of_a_tool(client: Anthropic) -> None:
    with client.messages.stream(**asked("Well. " + CALL), tools=[TOOL]) as stream:
        text, use = stream.get_final_message().content
    assert text.type == "text"
    assert text.text == "Well."
    assert use.type == "tool_use"
    assert use.input == {"city": "Paris"}


def test_the_sdk_runs_a_tool_itself(client: Anthropic) -> None:
    @beta_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"Say: Rain in {city}."

    runner = client.beta.messages.tool_runner(**asked(CALL), tools=[weather])
    *_, last = runner
    assert [block.type == "text" and block.text for block in last.content] == ["Rain in Paris."]


class City(BaseModel):
    name: str
    people: int


def test_an_answer_of_a_type(client: Anthropic) -> None:
    answer = client.messages.parse(**asked('{"name": "Paris", "people": 2}'), output_format=City)
    assert answer.parsed_output == City(name="Paris", people=2)
    messages: list[Any] = [{"role": "assistant", "content": answer.content}, *asked("Hello.")["messages"]]
    assert client.messages.create(model="tiny", max_tokens=200, messages=messages).stop_reason == "end_turn"


def test_models(client: Anthropic) -> None:
    assert [(model.id, model.type) for model in client.models.list()] == [("tiny", "model"), ("alias", "model")]
    assert client.models.retrieve("alias").max_input_tokens == 4000


def test_a_wrong_key(client: Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="sk-bad").messages.create(**asked("Hello."))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extra_body": {"temperature": -1}}, "temperature: "),
        ({"extra_body": {"temprature": 1}}, "temprature: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "prompt is too long: "),
    ],
)
def test_bad_fields_are_named(client: Anthropic, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=said):
        client.messages.create(**{**asked("Hello."), **changes})


def test_an_unknown_model(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="claude-9"):
        client.messages.create(**{**asked("Hello."), "model": "claude-9"})


def test_too_many_requests(client: Anthropic) -> None:
    spent = client.with_options(api_key="sk-spent")
    with contextlib.suppress(anthropic.RateLimitError):
        spent.messages.create(**asked("Hello."))
    with pytest.raises(anthropic.RateLimitError):
        spent.messages.create(**asked("Hello."))
