"""What OpenAI's routes answer, for OpenAPI's page. Renderers write these objects; tests hold them to these shapes."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from ..wire.sampling import Group

TextFinish = Literal["stop", "length"]
ChatFinish = Literal["stop", "length", "tool_calls", "function_call"]


class AnswerHead(Struct):
    """What an answer begins with, and each chunk of it."""

    id: str
    """The request's X-Request-Id, after cmpl- or chatcmpl-."""
    created: int
    """When the request came: Unix time, seconds."""
    model: str
    """The name that the request gave, or the first that the model is served under."""
    system_fingerprint: str
    """Changes whenever the same request and seed could give other tokens."""


class ModelCard(Struct):
    """A name that the model is served under."""

    id: str
    """What requests give as `model`."""
    object: Literal["model"]
    created: int
    """When the server started: Unix time, seconds."""
    owned_by: str
    """Always isthmus."""
    root: str
    """The name that is shown, the first of all."""
    parent: None
    """Always null: there are no adapters."""
    max_model_len: int
    """Tokens, prompt and output together."""


class ModelList(Struct):
    """The names that requests may give in `model`."""

    object: Literal["list"]
    data: list[ModelCard]
    """One for each name; they are all of one model."""


class PromptTokensDetails(Struct):
    cached_tokens: int
    """Whose KV was there already."""


class Timings(Struct):
    """Seconds in each stage; of several prompts, the slowest at each."""

    queue_s: float
    """Until it was placed on workers."""
    prefill_s: float
    """From then until the prompt was computed; without a prefill worker, until the first token."""
    transfer_s: float
    """From then to the first token, while the rest of its KV moved; 0 without a prefill worker."""
    decode_s: float
    """From the first token to the last."""


class Usage(Struct):
    """Tokens and times of a request."""

    prompt_tokens: int
    """Of all its prompts, those found in a cache included."""
    completion_tokens: int
    """Of all its choices, those that `best_of` leaves out included; thoughts, calls and stop tokens too."""
    total_tokens: int
    """Both together."""
    prompt_tokens_details: PromptTokensDetails
    """Of the prompts' tokens, those that cost less."""
    timings: Timings
    """Where the time went."""


class PromptToken(Struct):
    logprob: float
    """Natural logarithm of its probability after what stands before it; -9999 where it had no chance."""
    rank: int
    """1 is the likeliest."""
    decoded_token: str
    """Its text; bytes that are no whole characters are spelt out, as in `bytes:\\xe2`."""


PromptLogprobs = list[dict[str, PromptToken] | None]
"""By position, then by token id; the first token has none."""


class TextLogprobs(Struct):
    """Lists with an item for each token."""

    tokens: list[str]
    """Their texts; bytes that are no whole characters are spelt out, as in `bytes:\\xe2`."""
    token_logprobs: list[float | None]
    """Natural logarithms of their probabilities, -9999 where there was no chance; null for a prompt's first token."""
    top_logprobs: list[dict[str, float] | None]
    """By text: the likeliest tokens in its place, and itself; null for a prompt's first token."""
    text_offset: list[int]
    """Characters before the token."""


class AnyChoice(Struct, kw_only=True):
    """What a choice tells, and each piece of one."""

    index: int
    """Of the choice, from 0; those of the first prompt come first."""
    token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids: its tokens, those that stopped it included; in a chunk, those since the chunk before."""


class CompletionChoice(AnyChoice):
    text: str
    """What the model wrote, after the prompt with `echo`."""
    logprobs: TextLogprobs | None
    """Of the tokens of the text; null without `logprobs`."""
    finish_reason: TextFinish
    """stop: it came to its own end or to a stop string; length: to max_tokens, or to the end of the context."""
    stop_reason: int | str | None
    """The stop string, or the id among stop_token_ids, that ended it; else null."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """With prompt_logprobs: of each token of the prompt, null for the first, then by id the likeliest and itself."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids: those of its prompt."""


class Completion(AnswerHead):
    """Texts that go on from the prompts."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    """`n` for each prompt."""
    usage: Usage
    """Tokens and times of all choices together."""


class CompletionPiece(AnyChoice):
    text: str
    """To be added to the text before; with `echo` the first is the prompt."""
    logprobs: TextLogprobs | None
    """Of the tokens of this text; null without `logprobs`."""
    finish_reason: TextFinish | None
    """As in a whole answer; null in all pieces but the last."""
    stop_reason: int | str | UnsetType | None = UNSET
    """In the last piece alone: the stop string, or the id among stop_token_ids, that ended it; else null."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids: those of its prompt, in the first piece of a choice."""


class CompletionChunk(AnswerHead):
    """A part of the text of one choice; the last event is [DONE]."""

    object: Literal["text_completion"]
    choices: list[CompletionPiece]
    """One piece; none in the chunk with the usage."""
    usage: Usage | UnsetType | None = UNSET
    """With stream_options.include_usage alone: in the last chunk, which has no choices, null in the others; with
    continuous_usage_stats in all, so far."""


class TokenLogprob(Struct):
    token: str
    """Its text; bytes that are no whole characters are spelt out, as in `bytes:\\xe2`."""
    logprob: float
    """Natural logarithm of its probability; -9999 where it had no chance."""
    bytes: list[int]
    """Of its text in UTF-8, 0 to 255; they may begin or end within a character."""


class ContentLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]
    """The likeliest tokens in its place, as many as top_logprobs asks for, the likeliest first."""


class ChatLogprobs(Struct):
    content: list[ContentLogprob]
    """Of each token that the model wrote, thoughts and calls included."""
    refusal: None
    """Always null: refusals are not told apart."""


class CalledFunction(Struct):
    name: str
    """One of those that the request has."""
    arguments: str
    """JSON, as the model wrote it: cut short where finish_reason is length."""


class ToolCall(Struct):
    id: str
    """Which the message with its result names, as tool_call_id."""
    type: Literal["function"]
    """Only functions are called."""
    function: CalledFunction
    """What is to be called."""


class AssistantMessage(Struct):
    role: Literal["assistant"]
    """Whose message it is."""
    content: str | None
    """The text, without thoughts and calls; null where there are calls alone."""
    refusal: None
    """Always null: refusals are not told apart."""
    reasoning_content: str | UnsetType = UNSET
    """What the model thought before it answered; absent where that is nothing, or not to be shown."""
    reasoning: str | UnsetType = UNSET
    """The same as reasoning_content."""
    tool_calls: list[ToolCall] | UnsetType = UNSET
    """In the order they were made; absent where there are none."""
    function_call: CalledFunction | UnsetType = UNSET
    """In place of tool_calls, where the request has functions."""


class ChatChoice(AnyChoice):
    message: AssistantMessage
    """What the assistant says."""
    logprobs: ChatLogprobs | None
    """Of the tokens of the message; null without `logprobs`."""
    finish_reason: ChatFinish
    """stop: it came to its own end or to a stop string; length: to max_tokens, or to the end of the context;
    tool_calls, or function_call where the request has functions: it ended by itself, and has calls."""
    stop_reason: int | str | None
    """The stop string, or the id among stop_token_ids, that ended it; else null."""


class ChatCompletion(AnswerHead):
    """The assistant's messages."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    """`n` messages, each an answer of its own."""
    usage: Usage
    """Tokens and times of all choices together."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """With prompt_logprobs: of each token of the prompt, null for the first, then by id the likeliest and itself."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids: those of the conversation, as the template writes it."""


class CalledFunctionDelta(Struct):
    arguments: str
    """To be added to those before; the whole is JSON."""
    name: str | UnsetType = UNSET
    """One of those that the request has; in the first delta of a call."""


class ToolCallDelta(Struct):
    index: int
    """Of the call in its message, from 0."""
    function: CalledFunctionDelta
    """What is new of it."""
    id: str | UnsetType = UNSET
    """Which the message with its result names, as tool_call_id; in the first delta of a call."""
    type: Literal["function"] | UnsetType = UNSET
    """Beside the id."""


class Delta(Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    """Whose message it is; in the first delta of a choice."""
    content: str | UnsetType = UNSET
    """To be added to the text before; absent where nothing is."""
    reasoning_content: str | UnsetType = UNSET
    """To be added to the thoughts before; absent where nothing is."""
    reasoning: str | UnsetType = UNSET
    """The same as reasoning_content."""
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    """Calls that begin or go on here; absent where none does."""
    function_call: CalledFunctionDelta | UnsetType = UNSET
    """In place of tool_calls, where the request has functions."""


class ChatPiece(AnyChoice):
    delta: Delta
    """What is new of its message."""
    finish_reason: ChatFinish | None
    """As in a whole answer; null in all pieces but the last."""
    logprobs: ChatLogprobs | None
    """Of the tokens that this piece is made of; null without `logprobs`."""
    stop_reason: int | str | UnsetType | None = UNSET
    """In the last piece alone: the stop string, or the id among stop_token_ids, that ended it; else null."""


class ChatCompletionChunk(AnswerHead):
    """A part of the message of one choice; the last event is [DONE]."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPiece]
    """One piece; none in the chunk with the usage."""
    usage: Usage | UnsetType | None = UNSET
    """With stream_options.include_usage alone: in the last chunk, which has no choices, null in the others; with
    continuous_usage_stats in all, so far."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """With return_token_ids: those of the conversation, as the template writes it; in the first chunk of a choice."""


class SliderRange(Struct):
    minimum: float
    """Its left end."""
    maximum: float
    """Its right end."""
    step: float
    """From one value to the next."""


class RouteDefaults(Struct):
    openai: Any
    """Of OpenAI's completions."""
    kobold: Any
    """Of Kobold's routes."""


class SamplingParameter(Struct):
    """A field that requests may have."""

    name: str
    """As all routes know it."""
    kind: Literal["number", "integer", "boolean", "string", "object", "list"]
    """What its values are in JSON; number: one with a fraction."""
    group: Group
    """Parameters that belong together, for user interfaces."""
    help: str
    """What it does."""
    neutral: Any
    """What it is where a route has no default of its own."""
    defaults: RouteDefaults
    """What it is where a request leaves it out."""
    minimum: float | UnsetType = UNSET
    """The least it may be; absent where there is none."""
    exclusive_minimum: float | UnsetType = UNSET
    """It must be more than this; absent where there is none."""
    maximum: float | UnsetType = UNSET
    """The most it may be; absent where there is none."""
    slider: SliderRange | UnsetType = UNSET
    """The part of its range that is worth a slider; absent where none is."""
    aliases: list[str] | UnsetType = UNSET
    """Other clients' names of it; absent where there are none."""


class SamplerOrders(Struct):
    names: dict[str, list[str]]
    """By whose they are: ours, aphrodite, llama.cpp, textgen."""
    kobold_ids: dict[str, list[str]]
    """By KoboldCpp's id, from 0: our samplers that act in its place."""
    kobold_default: list[int]
    """KoboldCpp's order where a request gives none, in its ids."""


class Samplers(Struct):
    """All sampling parameters, and the orders of samplers."""

    object: Literal["list"]
    data: list[SamplingParameter]
    """Of all routes that generate."""
    order: SamplerOrders
    """Names and ids that lists of samplers (sampler_priority) may hold."""
