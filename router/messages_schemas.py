"""What Anthropic's routes answer, for OpenAPI's page."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from .error_schemas import AnthropicDetail

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class TextContent(Struct, tag="text"):
    text: str
    """What the model says; empty where a stream's block begins."""


class ThinkingContent(Struct, tag="thinking"):
    thinking: str
    """What it thinks; empty where a stream's block begins."""
    signature: str
    """Always empty: thoughts are not signed."""


class ToolUseContent(Struct, tag="tool_use"):
    id: str
    """Which the tool_result for it names, as tool_use_id."""
    name: str
    """Of the tool, one of those that the request has."""
    input: dict[str, Any]
    """Its arguments; empty where a stream's block begins. What is no JSON object stands as text in `invalid_json`."""


Content = TextContent | ThinkingContent | ToolUseContent


class MessageUsage(Struct):
    """Tokens of a request; those whose KV was there already are counted apart."""

    input_tokens: int
    """Of the prompt, without those of cache_read_input_tokens."""
    cache_read_input_tokens: int
    """Of the prompt, whose KV was there already."""
    output_tokens: int
    """Of the answer, thoughts and tool uses included; 0 in message_start."""


class MessageAnswer(Struct, tag="message"):
    """The assistant's message."""

    id: str
    """The request's X-Request-Id, after msg_."""
    role: Literal["assistant"]
    """Whose message it is."""
    model: str
    """The name that the request gave, or the first that the model is served under."""
    content: list[Content]
    """Thoughts, texts and uses of tools, in the order they were made; empty in message_start."""
    stop_reason: StopReason | None
    """Why it ended: by itself (end_turn), at max_tokens or at the end of the context, at one of stop_sequences, or to
    have tools used; null in message_start."""
    stop_sequence: str | None
    """The one of stop_sequences that ended it; null where none did."""
    usage: MessageUsage
    """Tokens of the prompt and, at its end, of the answer."""


class ContentDelta(Struct):
    type: Literal["text_delta", "thinking_delta", "input_json_delta"] | UnsetType = UNSET
    """Which of the next three fields there is; absent in message_delta."""
    text: str | UnsetType = UNSET
    """Of text_delta: to be added to the block's text."""
    thinking: str | UnsetType = UNSET
    """Of thinking_delta: to be added to the block's thoughts."""
    partial_json: str | UnsetType = UNSET
    """Of input_json_delta: to be added to the JSON text of the tool's input."""
    stop_reason: StopReason | UnsetType = UNSET
    """In message_delta: why the message ended."""
    stop_sequence: str | UnsetType | None = UNSET
    """In message_delta: the one of stop_sequences that ended it; null where none did."""


class OutputUsage(Struct):
    output_tokens: int
    """Of the whole answer, thoughts and tool uses included."""


class MessageEvent(Struct):
    """A step of a message; `type` is the event's name too, and says which fields there are."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]
    """message_start comes first; then the blocks one after another, each from its start over deltas to its stop; then
    message_delta and message_stop. An error ends the stream at any time."""
    message: MessageAnswer | UnsetType = UNSET
    """Of message_start: all but what is still to be made."""
    index: int | UnsetType = UNSET
    """Of content_block_start, _delta and _stop: which block, from 0."""
    content_block: Content | UnsetType = UNSET
    """Of content_block_start: the block as it begins."""
    delta: ContentDelta | UnsetType = UNSET
    """Of content_block_delta: what is new of the block; of message_delta: how the message ended."""
    usage: OutputUsage | UnsetType = UNSET
    """Of message_delta: tokens of the answer."""
    error: AnthropicDetail | UnsetType = UNSET
    """Of error: what is wrong."""


class AnthropicModel(Struct):
    """A model, in Anthropic's shape."""

    type: Literal["model"]
    """Which kind of object this is."""
    id: str
    """What requests give as `model`."""
    display_name: str
    """The same."""
    created_at: str
    """When the server started: RFC 3339, UTC."""
    max_input_tokens: int
    """Tokens of the context, prompt and output together."""
    max_tokens: int
    """The same: prompt and output share the context."""


class AnthropicModels(Struct):
    """The names that requests may give in `model`, in Anthropic's shape."""

    data: list[AnthropicModel]
    """One for each name; they are all of one model."""
    has_more: Literal[False]
    """Always false: there is one page."""
    first_id: str
    """Of the first in `data`."""
    last_id: str
    """Of the last in `data`."""


class TokenCount(Struct):
    """Tokens that the prompt of such a message would have."""

    input_tokens: int
    """As the chat template writes it, with tools."""
