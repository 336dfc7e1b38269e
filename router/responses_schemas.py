"""What POST /v1/responses answers, for OpenAPI's page."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class InputTokens(Struct):
    """Tokens that the prompt of such a response would have."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class OutputText(Struct, tag="output_text"):
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class ReasoningText(Struct, tag="reasoning_text"):
    text: str


class OutputMessage(Struct, tag="message"):
    """What the model says."""

    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(Struct, tag="reasoning"):
    """What it thinks before."""

    id: str
    status: Status
    summary: list[Any]
    content: list[ReasoningText]


class OutputCall(Struct, tag="function_call"):
    """A function it calls."""

    id: str
    status: Status
    call_id: str
    name: str
    arguments: str
    """JSON."""


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputDetails(Struct):
    cached_tokens: int


class OutputDetails(Struct):
    reasoning_tokens: int


class ResponseUsage(Struct):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Struct):
    reason: Literal["max_output_tokens"]


class ResponseFailure(Struct):
    code: str
    message: str


class TextOut(Struct):
    format: dict[str, Any]


class ResponseObject(Struct):
    """The answer to a conversation: thoughts, messages and calls of functions, in order."""

    id: str
    object: Literal["response"]
    created_at: int
    """Unix time, seconds."""
    model: str
    instructions: str | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    max_output_tokens: int | None
    previous_response_id: None
    text: TextOut
    truncation: Literal["disabled"]
    metadata: dict[str, Any]
    status: Status
    output: list[OutputItem]
    error: ResponseFailure | None
    incomplete_details: Incomplete | None
    usage: ResponseUsage | None
    """Null before the end."""


class ResponseEvent(Struct):
    """A step of a response; `type` is the event's name too, and says which fields there are."""

    type: str
    sequence_number: int
    """From 0."""
    response: ResponseObject | UnsetType = UNSET
    """Of response.created, .in_progress, .completed, .incomplete and .failed."""
    item: OutputItem | UnsetType = UNSET
    """Of response.output_item.added and .done."""
    item_id: str | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    """Of response.content_part.added and .done."""
    delta: str | UnsetType = UNSET
    """To be added to the text or to the arguments."""
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[Any] | UnsetType = UNSET
