"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..text.chat_template import ChatTemplateError
from .errors import bad_field
from .fields import convert, decode_json, take_apart
from .logprob_fields import put_chat_logprobs, take_chat_logprobs
from .openai_request import ALIASES, OpenAiRequest, Prompt, check_request, make_generation
from .served import Served
from .text_stream import Generation

CHAT_ALIASES = {**ALIASES, "max_completion_tokens": "max_tokens"}


class TextPart(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A message as clients send it, their own earlier answers included. What is null does not reach the template."""

    role: Annotated[str, Meta(min_length=1)]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    function_call: dict[str, Any] | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None


class ChatRequest(OpenAiRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    """The conversation, from its beginning."""
    add_generation_prompt: bool = True
    """End the prompt where the assistant's answer begins."""
    continue_final_message: bool = False
    """Leave the last message open, to be continued."""
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    """Variables for the chat template."""
    logprobs: bool = False
    """Tell how likely each token was."""
    top_logprobs: int = 0
    """And the likeliest tokens in its place, so many."""
    add_special_tokens: bool = False
    """Begin the rendered prompt as the model expects any text to begin, besides what the template wrote."""


OWN = frozenset(ChatRequest.__struct_fields__)


def parse_chat(raw: bytes, request_id: str, served: Served) -> tuple[ChatRequest, Generation]:
    """Raises ApiError. Safe in a thread, for large bodies."""
    fields = take_apart(decode_json(raw), OWN, CHAT_ALIASES)
    take_chat_logprobs(fields)
    request = convert(fields.own, ChatRequest, fields)
    put_chat_logprobs(request.logprobs, request.top_logprobs, fields, served)
    params = check_request(request, fields, served)
    if params.max_tokens == 0:
        raise bad_field(fields.sent("max_tokens"), "must be at least 1; /v1/completions takes 0, to warm a prefix")
    prompt = Prompt(encode_chat(request, served))
    return request, make_generation(request_id, request, params, [prompt], "messages", fields, served)


def encode_chat(request: ChatRequest, served: Served) -> list[int]:
    """The conversation as the model was trained to read it."""
    text = render_chat(request, served)
    if request.add_special_tokens:
        return served.tokenizer.encode(text)
    return served.tokenizer.encode_chat(text)


def render_chat(request: ChatRequest, served: Served) -> str:
    if served.chat_template is None:
        raise bad_field("messages", "the model has no chat template; start the server with --chat-template")
    if request.add_generation_prompt and request.continue_final_message:
        raise bad_field("continue_final_message", "needs add_generation_prompt false")
    try:
        return served.chat_template.render(
            [template_message(message) for message in request.messages],
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            template_kwargs=request.chat_template_kwargs,
        )
    except ChatTemplateError as error:
        raise bad_field("messages", str(error)) from error


def template_message(message: Message) -> dict[str, Any]:
    """As the dict that templates read: `content` is always there."""
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return {"content": None, **fields}
