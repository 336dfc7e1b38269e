"""What POST /v1/responses answers, for OpenAPI's page."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Status = Literal["in_progress", "completed", "incomplete", "failed"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputTokens(Struct):
    """Tokens that the prompt of such a response would have."""

    object: Literal["response.input_tokens"]
    input_tokens: int
    """As the chat template writes it, with instructions and tools."""


class OutputText(Struct, tag="output_text"):
    text: str
    """What the model says; empty where the part begins."""
    annotations: list[Any]
    """Always empty: nothing is cited."""
    logprobs: list[Any]
    """Always empty: they are not given here."""


class ReasoningText(Struct, tag="reasoning_text"):
    text: str
    """What the model thinks; empty where the part begins."""


class AnyItem(Struct):
    """What all items tell."""

    id: str
    """Of the item; events name it as item_id."""
    status: ItemStatus
    """in_progress while it is made; incomplete where the answer was cut in it."""


class OutputMessage(AnyItem, tag="message"):
    """What the model says."""

    role: Literal["assistant"]
    """Whose message it is."""
    content: list[OutputText]
    """One part; none where the item begins."""


class OutputReasoning(AnyItem, tag="reasoning"):
    """What it thinks before."""

    summary: list[Any]
    """Always empty: thoughts are given whole."""
    content: list[ReasoningText]
    """One part; none where the item begins."""


class OutputCall(AnyItem, tag="function_call"):
    """A function it calls."""

    call_id: str
    """Which the function_call_output with its result names."""
    name: str
    """Of the function, one of those in `tools`."""
    arguments: str
    """JSON, as the model wrote it: cut short where the status is incomplete, empty where the item begins."""


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputDetails(Struct):
    cached_tokens: int
    """Whose KV was there already."""


class OutputDetails(Struct):
    reasoning_tokens: int
    """Of thoughts, counted from their text."""


class ResponseUsage(Struct):
    """Tokens of a request."""

    input_tokens: int
    """Of the prompt, those found in a cache included."""
    input_tokens_details: InputDetails
    """Of the prompt's tokens, those that cost less."""
    output_tokens: int
    """Of the answer, thoughts and calls included."""
    output_tokens_details: OutputDetails
    """How many of them were thoughts."""
    total_tokens: int
    """Both together."""


class Incomplete(Struct):
    reason: Literal["max_output_tokens"]
    """It came to max_output_tokens, or to the end of the context."""


class ResponseFailure(Struct):
    code: Literal["server_error"]
    """The kind of failure."""
    message: str
    """What went wrong."""


class TextOut(Struct):
    format: dict[str, Any]
    """As the request gave it; else `type` is text."""


class ResponseObject(Struct):
    """The answer to a conversation: thoughts, messages and calls of functions, in order."""

    id: str
    """The request's X-Request-Id, after resp_; nothing is kept under it."""
    object: Literal["response"]
    created_at: int
    """When the request came: Unix time, seconds."""
    model: str
    """The name that the request gave, or the first that the model is served under."""
    instructions: str | None
    """As the request gave them; null where it had none."""
    tools: list[dict[str, Any]]
    """Functions that could be called, as the request gave them."""
    tool_choice: str | dict[str, Any]
    """Which of them, as the request gave it; auto where it said nothing."""
    parallel_tool_calls: bool
    """Whether several could be called."""
    temperature: float
    """That the tokens were drawn with."""
    top_p: float
    """That the tokens were drawn with."""
    max_output_tokens: int | None
    """As the request had it; null where it said nothing."""
    previous_response_id: None
    """Always null: nothing is kept between requests."""
    text: TextOut
    """What the answer is held to."""
    truncation: Literal["disabled"]
    """A prompt that is too long is refused, not cut."""
    metadata: dict[str, str]
    """As the request had it."""
    store: Literal[False]
    """Nothing is kept."""
    status: Status
    """completed: it came to its own end; incomplete: it was cut, as incomplete_details says; failed: see error."""
    output: list[OutputItem]
    """In the order they were made; in events, as far as they are made."""
    error: ResponseFailure | None
    """What went wrong after the stream had begun; null where nothing did."""
    incomplete_details: Incomplete | None
    """Why it was cut; null where it was not."""
    usage: ResponseUsage | None
    """Null before the end, and where it failed."""


class ResponseEvent(Struct):
    """A step of a response; `type` is the event's name too, and says which fields there are."""

    type: str
    """response.created and .in_progress come first; then of each item response.output_item.added, its parts, deltas
    and .done; then response.completed, .incomplete or .failed."""
    sequence_number: int
    """Of the event in the stream, from 0."""
    response: ResponseObject | UnsetType = UNSET
    """Of response.created, .in_progress, .completed, .incomplete and .failed."""
    item: OutputItem | UnsetType = UNSET
    """Of response.output_item.added and .done."""
    item_id: str | UnsetType = UNSET
    """Of the item that a part, a delta or its end belongs to."""
    output_index: int | UnsetType = UNSET
    """Where the item stands in the response's output, from 0."""
    content_index: int | UnsetType = UNSET
    """Where the part stands in the item's content: 0."""
    part: OutputText | ReasoningText | UnsetType = UNSET
    """Of response.content_part.added and .done."""
    delta: str | UnsetType = UNSET
    """To be added to the text or to the arguments."""
    text: str | UnsetType = UNSET
    """Of response.output_text.done and .reasoning_text.done: all of it."""
    name: str | UnsetType = UNSET
    """Of response.function_call_arguments.done: the function's."""
    arguments: str | UnsetType = UNSET
    """Of response.function_call_arguments.done: all of them, as JSON."""
    logprobs: list[Any] | UnsetType = UNSET
    """Of response.output_text.delta and .done: always empty."""
