"""The body of Anthropic's POST /v1/messages, as the chat that it means."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from .answer import AnswerForm
from .chat_messages import Cache, DirectCaller
from .chat_request import read_chat
from .errors import ApiError, bad_field
from .fields import Fields, convert, decode_json, take_apart
from .logprob_fields import refuse_logprobs
from .openai_request import MAX_STOPS, StopString
from .renamed import renamed
from .scheduling_fields import SchedulingFields
from .served import Served
from .text_stream import Generation
from .tool_fields import MAX_TOOLS

NAMES = ((".function.parameters", ".input_schema"), (".function", ""))


class Text(Struct, frozen=True):
    text: str
    """The text."""
    cache_control: Cache = None
    """A hint to a provider's cache; prefixes are found by their content here."""
    citations: list[Any] | None = None
    """Of an earlier answer; templates do not show them."""
    parsed_output: Any = None
    """What Anthropic's SDK has made of the text; it does nothing."""


class TextBlock(Text, frozen=True, tag="text", forbid_unknown_fields=True):
    """Among other blocks."""


class TextItem(Text, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where nothing else may stand."""

    type: Literal["text"]
    """What it is."""


class ThinkingBlock(Struct, frozen=True, tag="thinking", forbid_unknown_fields=True):
    thinking: str
    """What the assistant thought."""
    signature: str | None = None
    """As an earlier answer gave it; not needed."""


class ToolUseBlock(Struct, frozen=True, tag="tool_use", forbid_unknown_fields=True):
    id: str
    """Which the block with its result names."""
    name: str
    """Of the tool."""
    input: dict[str, Any]
    """What it was given."""
    caller: DirectCaller | None = None
    """Tools are used by the model itself, not by a program it writes."""
    toolset_name: None = None
    """Not built: tools are in no sets."""
    cache_control: Cache = None
    """A hint to a provider's cache; prefixes are found by their content here."""


class ToolResultBlock(Struct, frozen=True, tag="tool_result", forbid_unknown_fields=True):
    tool_use_id: str
    """Of the use whose result it is."""
    content: str | list[TextItem] | None = None
    """The result, as text."""
    is_error: bool | None = None
    """Templates have no place for it: the content says so itself."""
    toolset_name: None = None
    """Not built: tools are in no sets."""
    cache_control: Cache = None
    """A hint to a provider's cache; prefixes are found by their content here."""


Block = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock


class ChatMessage(Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    """Who speaks; results of tools are the user's."""
    content: str | Annotated[list[Block], Meta(min_length=1)]
    """The text, or blocks."""


class CustomTool(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    """What the model calls it by."""
    input_schema: dict[str, Any]
    """A JSON schema of its input, which is an object."""
    description: str | None = None
    """What it does, for the model."""
    strict: bool | None = None
    """Hold the model's uses to the schema."""
    type: Literal["custom"] | None = None
    """Only the client's own tools."""
    cache_control: Cache = None
    """A hint to a provider's cache; prefixes are found by their content here."""


class Choice(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    """If the model wants to, in any case, this one, or never."""
    name: str | None = None
    """Of the tool, where type is tool."""
    disable_parallel_tool_use: bool | None = None
    """One answer uses one tool at most."""


class Thinking(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["enabled", "disabled", "adaptive"]
    """Whether it does; templates know no more than that."""
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Where type is enabled: a hint that no model here is told."""
    display: str | None = None
    """Thoughts are shown whole, in their blocks."""


class JsonFormat(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    """Only JSON."""
    schema: dict[str, Any]
    """Its schema."""


class OutputConfig(Struct, frozen=True, forbid_unknown_fields=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """A hint: templates are told it as `reasoning_effort`, and may not know it."""
    format: JsonFormat | None = None
    """Hold the answer to a JSON schema."""


class MessagesRequest(SchedulingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    """The conversation: text, thoughts, uses of tools and their results. If the assistant's text is last, the answer
    continues it."""
    model: str | None = None
    """One of those that /v1/models lists; may be left out."""
    system: str | list[TextItem] = ""
    """What the model is told before the conversation."""
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOPS)] = msgspec.field(default_factory=list)
    """End the text before any of these strings."""
    stream: bool = False
    """Send the answer as events, while it is made."""
    tools: Annotated[list[CustomTool], Meta(max_length=MAX_TOOLS)] = msgspec.field(default_factory=list)
    """Tools the model may use, each with a JSON schema of its input."""
    tool_choice: Choice = Choice("auto")
    """Whether it does: if it wants to, in any case, this one, or never."""
    thinking: Thinking | None = None
    """Whether the model thinks before it answers, for templates that know `enable_thinking`."""
    output_config: OutputConfig = OutputConfig()
    """How much it thinks, and the JSON schema its answer is held to."""
    cache_control: Cache = None
    """A hint to a provider's cache; prefixes are found by their content here."""


OWN = frozenset(MessagesRequest.__struct_fields__)


def parse_messages(
    raw: bytes, request_id: str, served: Served, *, counted: bool = False
) -> tuple[MessagesRequest, Generation, AnswerForm]:
    """`counted`: only the prompt's tokens matter, and max_tokens may be missing. Else it must be there, so clients send
    what some model of Anthropic's can do, and it is cut to the context. Raises ApiError. Safe in a thread, for large
    bodies."""
    fields = take_apart(decode_json(raw), OWN, {})
    fields.past_context = "count" if counted else "cut"
    refuse_logprobs(fields, "Anthropic's answers have no place for it")
    request = convert(fields.own, MessagesRequest, fields)
    if "max_tokens" not in fields.sampling and not counted:
        raise ApiError(400, "max_tokens: missing", param="max_tokens")
    try:
        _, generation, form = read_chat(chat_fields(request, fields), request_id, served)
    except ApiError as error:
        raise renamed(error, NAMES) from error
    return request, generation, form


def chat_fields(request: MessagesRequest, fields: Fields) -> Fields:
    check_thinking(request.thinking)
    choice = request.tool_choice
    messages, continues = said_so_far(request.messages)
    own: dict[str, Any] = {
        "messages": list(chat_messages(request.system, messages)),
        "continue_final_message": continues,
        "add_generation_prompt": not continues,
        "tools": [chat_tool(tool) for tool in request.tools],
        "tool_choice": chat_choice(choice),
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
        "stop": request.stop_sequences,
        "stream": request.stream,
        "model": request.model,
        "priority": request.priority,
        "cache_salt": request.cache_salt,
    }
    own["chat_template_kwargs"] = template_variables(request)
    if (form := request.output_config.format) is not None:
        own["response_format"] = {"type": form.type, "json_schema": {"name": "output", "schema": form.schema}}
    sent_as = {**fields.sent_as, "response_format": "output_config.format"}
    return replace(fields, own={name: value for name, value in own.items() if value is not None}, sent_as=sent_as)


def said_so_far(messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], bool]:
    """(messages, whether the answer goes on where the last one ends, which is the assistant's). One without text is
    left out: the answer begins it. Raises ApiError (400) for one that ends in anything else."""
    last = messages[-1]
    if last.role == "user":
        return messages, False
    blocks = blocks_of(last)
    at = f"messages[{len(messages) - 1}].content[{len(blocks) - 1}]"
    match blocks[-1]:
        case TextBlock():
            said = any(block.text.strip() for block in blocks if isinstance(block, TextBlock))
            return (messages, True) if said else (messages[:-1], False)
        case ToolUseBlock():
            raise bad_field(at, "a tool_use needs its tool_result in a message after it")
        case _:
            raise bad_field(at, "the assistant's last message, which the answer continues, must end in text")


def check_thinking(thinking: Thinking | None) -> None:
    """Raises ApiError (400)."""
    if thinking is not None and thinking.budget_tokens is not None and thinking.type != "enabled":
        raise bad_field("thinking.budget_tokens", f"not where the type is {thinking.type!r}")


def template_variables(request: MessagesRequest) -> dict[str, Any]:
    """What is asked about thinking, for templates that know it."""
    effort, thinking = request.output_config.effort, request.thinking
    told = {} if effort is None else {"reasoning_effort": effort}
    return told if thinking is None else {**told, "enable_thinking": thinking.type != "disabled"}


def chat_tool(tool: CustomTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": {**function, "strict": tool.strict}}


def chat_choice(choice: Choice) -> Any:
    if choice.type == "tool":
        if choice.name is None:
            raise bad_field("tool_choice.name", "missing")
        return {"type": "function", "function": {"name": choice.name}}
    if choice.name is not None:
        raise bad_field("tool_choice.name", f"not where the type is {choice.type!r}")
    return {"any": "required"}.get(choice.type, choice.type)


def chat_messages(system: str | Sequence[Text], messages: Sequence[ChatMessage]) -> Iterator[dict[str, Any]]:
    if told := joined(system):
        yield {"role": "system", "content": told}
    for message in messages:
        blocks = blocks_of(message)
        yield from results_of(blocks)
        said = said_in(message.role, blocks)
        if len(said) > 1:
            yield said


def blocks_of(message: ChatMessage) -> Sequence[Block]:
    return [TextBlock(message.content)] if isinstance(message.content, str) else message.content


def results_of(blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        if isinstance(block, ToolResultBlock):
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": joined(block.content or "")}


def said_in(role: str, blocks: Sequence[Block]) -> dict[str, Any]:
    """The message without the results in it."""
    message: dict[str, Any] = {"role": role}
    if texts := [block for block in blocks if isinstance(block, TextBlock)]:
        message["content"] = joined(texts)
    if thoughts := [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]:
        message["reasoning_content"] = "\n".join(thoughts)
    if uses := [block for block in blocks if isinstance(block, ToolUseBlock)]:
        message["tool_calls"] = [chat_call(use) for use in uses]
    return message


def chat_call(use: ToolUseBlock) -> dict[str, Any]:
    return {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": use.input}}


def joined(content: str | Sequence[Text]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
