"""What Anthropic's routes answer, for OpenAPI's page."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from .error_schemas import AnthropicDetail

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class TextContent(Struct, tag="text"):
    text: str


class ThinkingContent(Struct, tag="thinking"):
    thinking: str
    signature: str


class ToolUseContent(Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


Content = TextContent | ThinkingContent | ToolUseContent


class MessageUsage(Struct):
    """Tokens of a request; those whose KV was there already are counted apart."""

    input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(Struct, tag="message"):
    """The assistant's message."""

    id: str
    role: Literal["assistant"]
    model: str
    content: list[Content]
    stop_reason: StopReason | None
    stop_sequence: str | None
    """The one that ended it."""
    usage: MessageUsage


class ContentDelta(Struct):
    type: Literal["text_delta", "thinking_delta", "input_json_delta"] | UnsetType = UNSET
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    partial_json: str | UnsetType = UNSET
    """Of a tool's input."""
    stop_reason: StopReason | UnsetType = UNSET
    """In message_delta."""
    stop_sequence: str | UnsetType | None = UNSET


class OutputUsage(Struct):
    output_tokens: int


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
    message: MessageAnswer | UnsetType = UNSET
    """Of message_start."""
    index: int | UnsetType = UNSET
    """Of the block."""
    content_block: Content | UnsetType = UNSET
    """As it begins."""
    delta: ContentDelta | UnsetType = UNSET
    usage: OutputUsage | UnsetType = UNSET
    """Of message_delta."""
    error: AnthropicDetail | UnsetType = UNSET


class AnthropicModel(Struct):
    """A model, in Anthropic's shape."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    """RFC 3339."""
    max_input_tokens: int
    max_tokens: int


class AnthropicModels(Struct):
    """The names that requests may give in `model`, in Anthropic's shape."""

    data: list[AnthropicModel]
    has_more: Literal[False]
    first_id: str
    last_id: str


class TokenCount(Struct):
    """Tokens that the prompt of such a message would have."""

    input_tokens: int
