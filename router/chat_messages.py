"""The messages of a chat, as clients send them and as templates read them."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..wire.json_text import loads
from .errors import bad_field

Cache = dict[str, Any] | None
"""A hint to a provider's cache; prefixes are found by their content here."""


class DirectCaller(Struct, frozen=True, forbid_unknown_fields=True):
    """Who calls, in items and blocks of other APIs."""

    type: Literal["direct"]
    """The model itself."""


class TextPart(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    type: Literal["text"]
    """Only text."""
    text: str
    """A part of the message's text."""
    cache_control: Cache = None
    """A hint to a provider's cache; prefixes are found by their content here."""


class CalledFunction(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    """Of the function."""
    arguments: str | dict[str, Any] | None = ""
    """JSON, or the object itself."""
    parsed_arguments: Any = None
    """What OpenAI's SDK has made of the arguments; it does nothing."""


class ToolCall(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A call that an assistant has made."""

    function: CalledFunction
    """What is called."""
    id: str | None = None
    """Which the message with its result names in tool_call_id."""
    type: Literal["function"] = "function"
    """Only functions are called."""
    index: int | None = None
    """Its place in a stream, which clients may send back."""


class Message(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A message as clients send it, their own earlier answers included. What is null does not reach the template."""

    role: Annotated[str, Meta(min_length=1)]
    """Who speaks, as the template names them: system, user, assistant, tool."""
    content: str | list[TextPart] | None = None
    """The text, or its parts."""
    name: str | None = None
    """Of who speaks, for templates that show it."""
    tool_calls: list[ToolCall] | None = None
    """Calls that the assistant has made."""
    tool_call_id: str | None = None
    """Of a tool's message: the call whose result it is."""
    reasoning_content: str | None = None
    """What the assistant thought before."""
    reasoning: str | None = None
    """Another name of reasoning_content."""
    refusal: str | None = None
    """What the assistant said instead of an answer; templates do not show it."""
    function_call: CalledFunction | None = None
    """The older form of one call."""
    annotations: list[Any] | None = None
    """Of an earlier answer; templates do not show them."""
    audio: dict[str, Any] | None = None
    """Of an earlier answer; templates do not show it."""
    parsed: Any = None
    """What OpenAI's SDK has made of the content; it does nothing."""
    cache_control: Cache = None
    """A hint to a provider's cache; prefixes are found by their content here."""


NOT_SHOWN = ("parsed", "cache_control")
"""Fields of messages that do not reach templates."""


def check_messages(messages: Any) -> None:
    """Raises ApiError (400) where a message, not yet read, holds what no chat here can: a field of its own sentence."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        for part_index, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type", "text") if isinstance(part, dict) else "text"
            if kind != "text":
                at = f"messages[{index}].content[{part_index}].type"
                raise bad_field(at, f"parts of type {kind!r} are not supported, only text", code="unsupported_field")


TESTS_FOR_NONE = re.compile(r"""(?<!reasoning_)content['"]?\]? is (not )?none""")


def template_messages(messages: Sequence[Message], template: str) -> Iterator[list[dict[str, Any]]]:
    """The conversation as the dicts that templates read, in the ways they want calls, the likeliest first: arguments
    as an object or as its text. Content that is null is empty text, but for templates that ask whether it is none."""
    null = None if TESTS_FOR_NONE.search(template) else ""
    developer = "developer" if "developer" in template else "system"
    yield [template_message(message, null, developer) for message in messages]
    if any(message.tool_calls for message in messages):
        yield [with_text_arguments(template_message(message, null, developer)) for message in messages]


def template_message(message: Message, null: str | None, developer: str) -> dict[str, Any]:
    """`developer`: what the template calls that role."""
    fields: dict[str, Any] = msgspec.to_builtins(message)
    for name in NOT_SHOWN:
        fields.pop(name, None)
    if message.role == "developer":
        fields["role"] = developer
    if message.tool_calls:
        fields["tool_calls"] = [template_call(call) for call in message.tool_calls]
    if (reasoning := fields.pop("reasoning", None)) is not None:
        fields.setdefault("reasoning_content", reasoning)
    return {"content": null, **fields}


def with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    for call in message.get("tool_calls", ()):
        if not isinstance(call["function"]["arguments"], str):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return message


def template_call(call: ToolCall) -> dict[str, Any]:
    fields: dict[str, Any] = {"type": "function", **msgspec.to_builtins(call)}
    fields.pop("index", None)
    fields["function"].pop("parsed_arguments")
    fields["function"]["arguments"] = arguments_object(call.function.arguments or "")
    return fields


def arguments_object(arguments: str | dict[str, Any]) -> str | dict[str, Any]:
    """What is no object stays text: a model may have written it, and be shown it again."""
    if isinstance(arguments, dict):
        return arguments
    try:
        value = loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments
