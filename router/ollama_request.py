"""The bodies of Ollama's /api/generate and /api/chat, as the chats or completions that they mean.

`options` are our sampling parameters under their names; what is left out is as on /v1, not as in Ollama's own defaults.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from .answer import AnswerForm
from .chat_messages import ToolCall
from .chat_request import Effort, read_chat
from .completion_request import read_completion
from .errors import ApiError, bad_field
from .fields import Fields, convert, decode_json, take_apart
from .logprob_fields import refuse_logprobs
from .renamed import renamed
from .served import Served
from .text_stream import Generation
from .tool_fields import Tools

NAMES = (("reasoning_effort", "think"), ("response_format", "format"), ("reasoning_content", "thinking"))
OWN_OPTIONS = frozenset(["stop"])
OPTION_ALIASES = {"num_predict": "max_tokens"}
HARDWARE_OPTIONS = frozenset(
    [
        "numa", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "f16_kv",
        "vocab_only", "num_keep",
    ]
)  # fmt: skip
"""How Ollama runs a model: here that is the server's to decide."""
T = TypeVar("T", bound=Struct)
Nothing = Annotated[list[Any], Meta(max_length=0)] | None


class OllamaMessage(Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant", "tool"]
    """Who says it."""
    content: str = ""
    """What is said."""
    thinking: str | None = None
    """The assistant's thoughts before it."""
    tool_calls: list[ToolCall] | None = None
    """The assistant's calls of functions."""
    tool_name: str | None = None
    """Of the role tool: the function whose result this is."""
    tool_call_id: str | None = None
    """The id of that call."""
    images: Nothing = None
    """Not built."""


class OllamaRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields of both routes."""

    model: str | None = None
    """One of those that /api/tags lists, maybe with :latest."""
    stream: bool = True
    """Send the answer as lines of JSON, while it is made."""
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    """Sampling parameters, `num_predict` and `stop`. Ollama's options for its hardware change nothing here."""
    format: Literal["", "json"] | dict[str, Any] | None = None
    """json, or a JSON schema: the answer is JSON that it describes."""
    think: bool | Effort | None = None
    """Whether the model thinks before it answers, or how long, for templates that know it."""
    keep_alive: str | float | None = None
    """Nothing to keep: the model stays loaded."""


class GenerateRequest(OllamaRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prompt: Annotated[str, Meta(min_length=1)]
    """What the user says."""
    system: str = ""
    """What the model is told before it."""
    raw: bool = False
    """The prompt is the whole text, not to be put into the chat template."""
    suffix: Literal[""] | None = None
    """Not built."""
    template: Literal[""] | None = None
    """Not built: the template is the model's own."""
    context: Nothing = None
    """Not built: nothing is kept."""
    images: Nothing = None
    """Not built."""


class ChatRequest(OllamaRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[OllamaMessage], Meta(min_length=1)]
    """The conversation, from its beginning."""
    tools: Tools | None = None
    """Functions the model may call, each with a JSON schema of its arguments."""


Parsed = tuple[OllamaRequest, Generation, AnswerForm]


def parse_generate(raw: bytes, request_id: str, served: Served) -> Parsed:
    """Raises ApiError. Safe in a thread, for large bodies."""
    asked = read(raw, GenerateRequest)
    if asked.raw or served.chat_template is None:
        return as_completion(asked, request_id, served)
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    messages = [*system, {"role": "user", "content": asked.prompt}]
    return as_chat(asked, {"messages": messages}, (("messages", "prompt"), *NAMES), request_id, served)


def parse_chat(raw: bytes, request_id: str, served: Served) -> Parsed:
    """Raises ApiError. Safe in a thread, for large bodies."""
    asked = read(raw, ChatRequest)
    own = {"messages": [chat_message(message) for message in asked.messages], "tools": msgspec.to_builtins(asked.tools)}
    return as_chat(asked, own, NAMES, request_id, served)


def read(raw: bytes, kind: type[T]) -> T:
    """A field that is null is as one that is left out. Raises ApiError."""
    known = kind.__struct_fields__
    body = {name: value for name, value in decode_json(raw).items() if value is not None or name not in known}
    return convert(body, kind)


def chat_message(message: OllamaMessage) -> dict[str, Any]:
    calls = None if message.tool_calls is None else msgspec.to_builtins(message.tool_calls)
    fields = {
        "role": message.role,
        "content": message.content,
        "reasoning_content": message.thinking,
        "tool_calls": calls,
        "name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    return {name: value for name, value in fields.items() if value is not None}


def as_chat(
    asked: OllamaRequest, own: dict[str, Any], names: tuple[tuple[str, str], ...], request_id: str, served: Served
) -> Parsed:
    thinks = {"chat_template_kwargs": {"enable_thinking": asked.think}} if isinstance(asked.think, bool) else {}
    effort = {"reasoning_effort": asked.think} if isinstance(asked.think, str) else {}
    try:
        _, generation, form = read_chat(fields_of(asked, {**own, **thinks, **effort}, served), request_id, served)
    except ApiError as error:
        raise renamed(error, (*names, *in_options(error, asked))) from error
    return asked, generation, form


def as_completion(asked: GenerateRequest, request_id: str, served: Served) -> Parsed:
    if asked.think not in (None, False, "none"):
        raise bad_field("think", "needs the model's chat template, which raw does without")
    prompt = f"{asked.system}\n\n{asked.prompt}" if asked.system else asked.prompt
    try:
        _, generation = read_completion(fields_of(asked, {"prompt": prompt}, served), request_id, served)
    except ApiError as error:
        raise renamed(error, (*NAMES, *in_options(error, asked))) from error
    return asked, generation, AnswerForm()


def fields_of(asked: OllamaRequest, own: dict[str, Any], served: Served) -> Fields:
    """Raises ApiError."""
    options = {name: value for name, value in asked.options.items() if name not in HARDWARE_OPTIONS}
    if options.get("num_predict") in (-1, -2):
        del options["num_predict"]  # as many as there is room for
    fields = take_apart(options, OWN_OPTIONS, OPTION_ALIASES)
    refuse_logprobs(fields, "these answers have no place for it")
    told = {**fields.own, **own, "model": model_named(asked.model, served), "stream": asked.stream}
    told["response_format"] = response_format(asked.format)
    present = {name: value for name, value in told.items() if value is not None}
    return replace(fields, own=present, sent_as={**fields.sent_as, "response_format": "format"})


def model_named(name: str | None, served: Served) -> str | None:
    """Ollama's clients add a tag to names that have none."""
    if name is None or name in served.model_names:
        return name
    return name.removesuffix(":latest")


def response_format(format: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(format, dict):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": format}}
    return {"type": "json_object"} if format else None


def in_options(error: ApiError, asked: OllamaRequest) -> tuple[tuple[str, str], ...]:
    """Where the field at fault is, if it is among the options."""
    head = (error.param or "").partition("[")[0].partition(".")[0]
    return ((head, f"options.{head}"),) if head in asked.options else ()
