"""The bodies of refusals, one shape for each API, and what each status means."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from .errors import ErrorWriter, anthropic_error, error_writer, kobold_error, ollama_error, openai_error
from .schemas import Schema, schema_of

MEANINGS = {
    400: "The request cannot be understood or served; the message names the field.",
    401: "No API key of this server was sent.",
    403: "The API key is not allowed to do this.",
    404: "What the request names is not here.",
    408: "The body did not come in time.",
    413: "The body is larger than the server takes.",
    429: "The API key has used up its requests a minute, or has too many at once.",
    503: "The server is starting, shutting down or full; Retry-After says when to try again, where that is known.",
    504: "No token came in time.",
}


class OpenAiDetail(Struct):
    message: str
    """What is wrong, beginning with the field at fault where there is one."""
    type: str
    """The kind of error, such as invalid_request_error."""
    param: str | None
    """The path of the field at fault; null where it is none's."""
    code: str | None
    """A short word for the error, such as context_length_exceeded; null where it has none."""


class OpenAiError(Struct):
    """Why there is no answer, or no more of it."""

    error: OpenAiDetail
    """What is wrong, for people and for programs."""


class KoboldDetail(Struct):
    msg: str
    """What is wrong, beginning with the field at fault where there is one."""
    type: str
    """The kind of error, such as bad_input."""
    param: str | None
    """The path of the field at fault; null where it is none's."""


class ErrorMessage(Struct):
    message: str
    """What is wrong, beginning with the field at fault where there is one."""


class KoboldError(Struct):
    """Why there is no answer."""

    detail: KoboldDetail
    """What is wrong, for people and for programs."""
    error: ErrorMessage
    """The same for clients that look for OpenAI's errors, as SillyTavern does where an answer is streamed."""


class ThreadDetails(Struct):
    error_code: Literal["thread_unsupported_request"]
    """What makes Anthropic's SDK send whole conversations."""
    unsupported: list[str]
    """Fields that are not supported."""


class AnthropicDetail(Struct):
    type: str
    """The kind of error, such as invalid_request_error."""
    message: str
    """What is wrong, beginning with the field at fault where there is one."""
    details: ThreadDetails | UnsetType = UNSET
    """Of a request for a `thread`: nothing is kept between requests, clients send whole conversations."""


class AnthropicError(Struct, tag="error"):
    """Why there is no answer."""

    error: AnthropicDetail
    """What is wrong, for people and for programs."""


class OllamaError(Struct):
    """Why there is no answer, or no more of it."""

    error: str
    """What is wrong, beginning with the field at fault where there is one."""


SHAPES: dict[ErrorWriter, type[Struct]] = {
    openai_error: OpenAiError,
    kobold_error: KoboldError,
    anthropic_error: AnthropicError,
    ollama_error: OllamaError,
}
"""By the function that writes it."""


def error_schemas() -> dict[str, Schema]:
    """By name."""
    return {struct.__name__: schema_of(struct) for struct in SHAPES.values()}


def error_name(path: str) -> str:
    """Of the shape that a route at `path` refuses in."""
    return SHAPES[error_writer(path)].__name__
