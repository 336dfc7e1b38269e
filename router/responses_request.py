"""The body of POST /v1/responses, as the chat that it means.

Nothing is kept between requests: a conversation is sent whole, as `input`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from .answer import AnswerForm
from .chat_messages import DirectCaller
from .chat_request import Effort, read_chat
from .errors import ApiError, bad_field
from .fields import Fields, convert, decode_json, take_apart
from .logprob_fields import refuse_logprobs
from .renamed import renamed
from .scheduling_fields import SchedulingFields
from .served import Served
from .text_stream import Generation
from .tool_fields import MAX_TOOLS, FunctionFields

ALIASES = {"max_output_tokens": "max_tokens"}
NAMES = (
    ("messages", "input"),
    ("reasoning_effort", "reasoning.effort"),
    ("tool_choice.function", "tool_choice.name"),
    ("tool_choice.name.name", "tool_choice.name"),
    (".function", ""),
    ("tool_choice.allowed_tools", "tool_choice"),
)
NOTHING_KEPT = "nothing is kept between requests; send the whole conversation as input"
NO_LOGPROBS = "answers have no logprobs here, but /v1/chat/completions has them"


class TextItem(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    """Whose text it is; all are read alike."""
    text: str
    """The text."""
    annotations: list[Any] | None = None
    """As an earlier response gave it; not needed."""
    logprobs: list[Any] | None = None
    """As an earlier response gave it; not needed."""
    parsed: Any = None
    """What OpenAI's SDK has made of the text; it does nothing."""


Texts = str | list[TextItem]
Label = Annotated[str, Meta(max_length=64)]
LabelText = Annotated[str, Meta(max_length=512)]


class MessageItem(Struct, frozen=True, tag="message", forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system", "developer"]
    """Who speaks; a developer is read as the system."""
    content: Texts
    """The text, or its parts."""
    id: str | None = None
    """As an earlier response gave it; not needed."""
    status: str | None = None
    """As an earlier response gave it; not needed."""
    phase: str | None = None
    """As an earlier response gave it; not needed."""


class CallItem(Struct, frozen=True, tag="function_call", forbid_unknown_fields=True):
    call_id: str
    """Which the item with its result names."""
    name: str
    """Of the function."""
    arguments: str
    """JSON."""
    id: str | None = None
    """As an earlier response gave it; not needed."""
    status: str | None = None
    """As an earlier response gave it; not needed."""
    parsed_arguments: Any = None
    """What OpenAI's SDK has made of the arguments; it does nothing."""
    caller: DirectCaller | None = None
    """Calls are the model's own, not those of a program it writes."""
    namespace: None = None
    """Not built: functions have none."""
    asynchronous: Annotated[Literal[False] | None, Meta(description="Not built: results of calls are waited for.")] = (
        msgspec.field(default=None, name="async")
    )
    async_: Literal[False] | None = None
    """The same, as OpenAI's SDK spells it in Python."""


class ResultItem(Struct, frozen=True, tag="function_call_output", forbid_unknown_fields=True):
    call_id: str
    """Of the call whose result it is."""
    output: Texts
    """The result, as text."""
    id: str | None = None
    """As an earlier response gave it; not needed."""
    status: str | None = None
    """As an earlier response gave it; not needed."""
    caller: DirectCaller | None = None
    """Calls are the model's own, not those of a program it writes."""
    created_by: str | None = None
    """As a provider's list of items gave it; not needed."""
    name: str | None = None
    """Of the function; the call says it."""
    namespace: None = None
    """Not built: functions have none."""


class ReasoningItem(Struct, frozen=True, tag="reasoning", forbid_unknown_fields=True):
    summary: list[TextItem] | None = None
    """Read where there is no content."""
    content: list[TextItem] | None = None
    """The thought."""
    id: str | None = None
    """As an earlier response gave it; not needed."""
    status: str | None = None
    """As an earlier response gave it; not needed."""
    encrypted_content: str | None = None
    """As an earlier response gave it; not needed."""


Item = MessageItem | CallItem | ResultItem | ReasoningItem


class FunctionTool(FunctionFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    """Only functions are called."""


class NamedFunction(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["function"]
    """Only functions are called."""
    name: str
    """One of those in tools."""


class ChosenFunctions(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The function of that name, or those in `tools`."""

    type: Literal["function", "allowed_tools"]
    """Which of the two is chosen."""
    name: str | None = None
    """The function to call."""
    mode: Literal["auto", "required"] | None = None
    """Whether one of those in `tools` must be called."""
    tools: Annotated[list[NamedFunction], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None
    """Those that may be called."""


class TextFormat(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    """What the text is: anything, JSON, or JSON that a schema describes."""
    name: str | None = None
    """Of the schema; not shown to the model."""
    description: str | None = None
    """Of the schema; not shown to the model."""
    schema: dict[str, Any] | None = None
    """The JSON schema."""
    strict: bool | None = None
    """Nothing to switch: the schema always holds."""


class Reasoning(Struct, frozen=True, forbid_unknown_fields=True):
    effort: Effort | None = None
    """How long the model thinks, for templates that know it; none: not at all."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Thoughts are shown whole, in their items."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """The older name of summary."""


class TextConfig(Struct, frozen=True, forbid_unknown_fields=True):
    format: TextFormat | None = None
    """What the text is."""
    verbosity: Literal["medium"] | None = None
    """Only as it is."""


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_obfuscation: Literal[False] | None = None
    """Padding against observers of packet lengths. Not built."""


class ResponsesRequest(SchedulingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    input: Annotated[str, Meta(min_length=1)] | Annotated[list[Item], Meta(min_length=1)]
    """What the user says, or the conversation: messages, calls of functions, their results, and thoughts."""
    model: str | None = None
    """One of those that /v1/models lists; may be left out."""
    instructions: str | None = None
    """A system message before the conversation."""
    stream: bool = False
    """Send the answer as events, while it is made."""
    stream_options: StreamOptions | None = None
    """Padding of events (include_obfuscation) is not built."""
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] = msgspec.field(default_factory=list)
    """Functions the model may call, each with a JSON schema of its arguments."""
    tool_choice: Literal["none", "auto", "required"] | ChosenFunctions = "auto"
    """Whether it calls: never, if it wants to, always, this one function, or only those of allowed_tools."""
    parallel_tool_calls: bool = True
    """Whether one answer may call more than once."""
    text: TextConfig = TextConfig()
    """`format`: plain text, JSON, or JSON that a schema describes."""
    reasoning: Reasoning = Reasoning()
    """`effort`: how long the model thinks, for templates that know it."""
    include: list[Literal["reasoning.encrypted_content"]] = msgspec.field(default_factory=list)
    """Nothing to add: thoughts are in their items as they are."""
    truncation: Literal["disabled"] = "disabled"
    """Too long a conversation is refused, never cut."""
    background: Literal[False] = False
    """Not built: answers are made while the client waits."""
    previous_response_id: str | None = None
    """Not built: nothing is kept, send the whole conversation."""
    conversation: str | dict[str, Any] | None = None
    """Not built: nothing is kept, send the whole conversation."""
    prompt: dict[str, Any] | None = None
    """Not built: no prompts are kept, send instructions and input."""
    metadata: Annotated[dict[Label, LabelText], Meta(max_length=16)] = msgspec.field(default_factory=dict)
    """Labels that the answer repeats."""
    store: bool | None = None
    """Nothing is kept, and the answer says so: its own `store` is false."""


OWN = frozenset(ResponsesRequest.__struct_fields__)


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    request: ResponsesRequest
    max_output_tokens: int | None
    """As asked for."""
    generation: Generation
    form: AnswerForm


def parse_response(raw: bytes, request_id: str, served: Served, *, counted: bool = False) -> ParsedResponse:
    """`counted`: only the prompt's tokens matter. Raises ApiError. Safe in a thread, for large bodies."""
    fields = take_apart(decode_json(raw), OWN, ALIASES)
    if counted:
        fields.past_context = "count"
    if isinstance(fields.own.get("input"), list):
        fields.own["input"] = [typed_item(item) for item in fields.own["input"]]
    refuse_kept(fields)
    refuse_logprobs(fields, NO_LOGPROBS)
    refuse_included(fields.own.get("include"))
    request = convert(fields.own, ResponsesRequest, fields)
    try:
        _, generation, form = read_chat(chat_fields(request, fields), request_id, served)
    except ApiError as error:
        raise renamed(error, NAMES) from error
    return ParsedResponse(request, fields.sampling.get("max_tokens"), generation, form)


def refuse_kept(fields: Fields) -> None:
    """Raises ApiError (400) for an earlier response that is meant to be known."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if name in fields.own:
            raise bad_field(name, NOTHING_KEPT, code="unsupported_field")
    items = fields.own.get("input")
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if is_reference(item):
            raise bad_field(f"input[{index}]", f"refers to another item, but {NOTHING_KEPT}", code="unsupported_field")


def is_reference(item: Any) -> bool:
    """Whether it names an item of an earlier response; its type may be left out."""
    if not isinstance(item, dict):
        return False
    return item.get("type") == "item_reference" or ("id" in item and item.keys() <= {"id", "type"})


def refuse_included(include: Any) -> None:
    """Raises ApiError (400) for logprobs."""
    for index, name in enumerate(include if isinstance(include, list) else ()):
        if name == "message.output_text.logprobs":
            raise bad_field(f"include[{index}]", NO_LOGPROBS, code="unsupported_field")


def typed_item(item: Any) -> Any:
    """Messages may be sent without their type."""
    return {"type": "message", **item} if isinstance(item, dict) and "role" in item else item


def chat_fields(request: ResponsesRequest, fields: Fields) -> Fields:
    own: dict[str, Any] = {
        "messages": [*instructions(request), *chat_messages(request.input)],
        "tools": [chat_tool(tool) for tool in request.tools],
        "tool_choice": chat_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "reasoning_effort": request.reasoning.effort,
        "response_format": chat_format(request.text.format),
        "stream": request.stream,
        "model": request.model,
        "priority": request.priority,
        "cache_salt": request.cache_salt,
    }
    sent_as = {**fields.sent_as, "response_format": "text.format"}
    return replace(fields, own={name: value for name, value in own.items() if value is not None}, sent_as=sent_as)


def instructions(request: ResponsesRequest) -> list[dict[str, Any]]:
    return [{"role": "system", "content": request.instructions}] if request.instructions else []


def chat_tool(tool: FunctionTool) -> dict[str, Any]:
    function = msgspec.to_builtins(tool)
    return {"type": function.pop("type"), "function": function}


def chat_choice(choice: str | ChosenFunctions) -> Any:
    """What does not belong to its type, or is missing, the chat says."""
    if isinstance(choice, str):
        return choice
    told: dict[str, Any] = {"type": choice.type}
    if choice.name is not None:
        told["function"] = {"name": choice.name}
    if choice.tools is not None:
        told["allowed_tools"] = {"tools": [{"function": {"name": tool.name}} for tool in choice.tools]}
    if choice.mode is not None:
        told.setdefault("allowed_tools", {})["mode"] = choice.mode
    return told


def chat_format(format: TextFormat | None) -> dict[str, Any] | None:
    if format is None or format.type != "json_schema":
        return None if format is None else {"type": format.type}
    named = msgspec.to_builtins(format)
    return {"type": named.pop("type"), "json_schema": named}


def chat_messages(conversation: str | Sequence[Item]) -> Iterator[dict[str, Any]]:
    """What an assistant thought, said and called in a row is one message."""
    if isinstance(conversation, str):
        yield {"role": "user", "content": conversation}
        return
    turn: dict[str, Any] = {}
    for item in conversation:
        if turn and not goes_on(turn, item):
            yield turn
            turn = {}
        match item:
            case MessageItem(role="assistant"):
                turn |= {"role": "assistant", "content": joined(item.content)}
            case MessageItem():
                yield {"role": item.role, "content": joined(item.content)}
            case ReasoningItem():
                turn |= {"role": "assistant", "reasoning_content": joined(item.content or item.summary or [])}
            case CallItem():
                turn["role"] = "assistant"
                turn["tool_calls"] = [*turn.get("tool_calls", ()), chat_call(item)]
            case ResultItem():
                yield {"role": "tool", "tool_call_id": item.call_id, "content": joined(item.output)}
    if turn:
        yield turn


def goes_on(turn: dict[str, Any], item: Item) -> bool:
    """Whether the assistant's message that has begun takes `item` in: a thought, then text, then calls."""
    if isinstance(item, CallItem):
        return True
    return isinstance(item, MessageItem) and item.role == "assistant" and not turn.keys() & {"content", "tool_calls"}


def chat_call(item: CallItem) -> dict[str, Any]:
    return {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}


def joined(content: Texts) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
