"""What Ollama's routes answer, for OpenAPI's page."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType


class OllamaVersion(Struct):
    """The version of Ollama whose API this is."""

    version: str


class OllamaDetails(Struct):
    """Of the model's file, which is not read for this: all empty."""

    parent_model: str
    format: str
    family: str
    parameter_size: str
    quantization_level: str
    families: list[str]


class OllamaModel(Struct):
    name: str
    model: str
    modified_at: str
    """RFC 3339."""
    size: int
    """Bytes; 0: not known here."""
    digest: str
    details: OllamaDetails


class OllamaModels(Struct):
    """The names that requests may give in `model`."""

    models: list[OllamaModel]


class OllamaFacts(Struct):
    """What the model can do, its chat template and its context."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]


class OllamaAnswer(Struct, kw_only=True):
    """Counts and durations (ns) come with the last line, and with a whole answer."""

    model: str
    created_at: str
    done: bool
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class OllamaFunction(Struct):
    name: str
    arguments: dict[str, Any]


class OllamaCall(Struct):
    function: OllamaFunction


class OllamaMessage(Struct):
    role: Literal["assistant"]
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class OllamaChat(OllamaAnswer, kw_only=True):
    """A message, or a part of it in a line."""

    message: OllamaMessage


class OllamaText(OllamaAnswer, kw_only=True):
    """A text, or a part of it in a line."""

    response: str
    thinking: str | UnsetType = UNSET
