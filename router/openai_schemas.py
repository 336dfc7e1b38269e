"""What OpenAI's routes answer, for OpenAPI's page. Renderers write these objects; tests hold them to these shapes."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

FinishReason = Literal["stop", "length", "tool_calls", "function_call", "abort", "error"]


class ModelCard(Struct):
    """A name that the model is served under."""

    id: str
    object: Literal["model"]
    created: int
    """Unix time, seconds."""
    owned_by: str
    root: str
    """The name that is shown."""
    parent: None
    max_model_len: int
    """Tokens, prompt and output together."""


class ModelList(Struct):
    """The names that requests may give in `model`."""

    object: Literal["list"]
    data: list[ModelCard]


class PromptTokensDetails(Struct):
    cached_tokens: int
    """Whose KV was there already."""


class Timings(Struct):
    """Seconds in each stage."""

    queue_s: float
    prefill_s: float
    transfer_s: float
    """Of KV, to the first token."""
    decode_s: float


class Usage(Struct):
    """Tokens and times of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    timings: Timings


class PromptToken(Struct):
    logprob: float
    rank: int
    """1 is the likeliest."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]
"""By position, then by token id; the first token has none."""


class TextLogprobs(Struct):
    """Lists with an item for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Characters before the token."""


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    """The stop string, or the id of the token, that ended it."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """Where they were asked for."""
    token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids."""


class Completion(Struct):
    """Texts that go on from the prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    """Unix time, seconds."""
    model: str
    system_fingerprint: str
    """Changes whenever the same request and seed could give other tokens."""
    choices: list[CompletionChoice]
    usage: Usage


class CompletionPiece(Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | UnsetType | None = UNSET
    """In the last piece."""
    token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids: in the first piece of a choice."""


class CompletionChunk(Struct):
    """A part of the text of one choice; the last event is [DONE]."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionPiece]
    usage: Usage | UnsetType | None = UNSET
    """With stream_options.include_usage: in the last chunk, which has no choices; with continuous_usage_stats in all,
    so far."""


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    """UTF-8."""


class ContentLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]
    """The likeliest tokens in its place."""


class ChatLogprobs(Struct):
    content: list[ContentLogprob]
    refusal: None


class CalledFunction(Struct):
    name: str
    arguments: str
    """JSON."""


class ToolCall(Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Struct):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    """What the model thought before it answered."""
    reasoning: str | UnsetType = UNSET
    """The same as reasoning_content."""
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET
    """In place of tool_calls, where the request has functions."""


class ChatChoice(Struct):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    """The stop string, or the id of the token, that ended it."""
    token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids."""


class ChatCompletion(Struct):
    """The assistant's messages."""

    id: str
    object: Literal["chat.completion"]
    created: int
    """Unix time, seconds."""
    model: str
    system_fingerprint: str
    """Changes whenever the same request and seed could give other tokens."""
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """Where they were asked for."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids."""


class CalledFunctionDelta(Struct):
    arguments: str
    """To be added to those before."""
    name: str | UnsetType = UNSET


class ToolCallDelta(Struct):
    index: int
    function: CalledFunctionDelta
    id: str | UnsetType = UNSET
    """In the first delta of a call."""
    type: Literal["function"] | UnsetType = UNSET


class Delta(Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    """The same as reasoning_content."""
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: CalledFunctionDelta | UnsetType = UNSET
    """In place of tool_calls, where the request has functions."""


class ChatPiece(Struct):
    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | None
    stop_reason: int | str | UnsetType | None = UNSET
    """In the last piece."""
    token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids."""


class ChatCompletionChunk(Struct):
    """A part of the message of one choice; the last event is [DONE]."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatPiece]
    usage: Usage | UnsetType | None = UNSET
    """With stream_options.include_usage: in the last chunk, which has no choices; with continuous_usage_stats in all,
    so far."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids: in the first chunk of a choice."""


class Samplers(Struct):
    """All sampling parameters, and the orders of samplers."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    """Name, other names, kind, group, range, slider, neutral value, defaults of OpenAI's and Kobold's routes, help."""
    order: dict[str, Any]
    """Names and ids that lists of samplers may hold."""
