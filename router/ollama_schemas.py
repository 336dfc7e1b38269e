"""What Ollama's routes answer, for OpenAPI's page."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType


class OllamaVersion(Struct):
    """The version of Ollama whose API this is."""

    version: str
    """Three numbers; clients switch features on by it."""


class OllamaDetails(Struct):
    """Of the model's file, which is not read for this: all empty."""

    parent_model: str
    """The model that it was made from: always empty."""
    format: str
    """Of the file: always empty."""
    family: str
    """The architecture: always empty."""
    parameter_size: str
    """How many weights there are: always empty."""
    quantization_level: str
    """How they are stored: always empty."""
    families: list[str]
    """All architectures in the file: always empty."""


class OllamaModel(Struct):
    name: str
    """What requests give as `model`."""
    model: str
    """The same."""
    modified_at: str
    """When the server started: RFC 3339, UTC."""
    size: int
    """Bytes; always 0: not known here."""
    digest: str
    """SHA-256, hexadecimal, of the name and of what decides its tokens; not of a file."""
    details: OllamaDetails
    """Of the model's file, which is not read for this: all empty."""


class OllamaModels(Struct):
    """The names that requests may give in `model`."""

    models: list[OllamaModel]
    """One for each name; they are all of one model."""


class OllamaFacts(Struct):
    """What the model can do, its chat template and its context."""

    modelfile: str
    """Always empty: there is none."""
    parameters: str
    """Defaults of the model's own: always empty."""
    template: str
    """The chat template, in Jinja; empty where the model has none."""
    details: OllamaDetails
    """Of the model's file, which is not read for this: all empty."""
    model_info: dict[str, Any]
    """`general.architecture`, always isthmus, and `isthmus.context_length`: tokens, prompt and output together."""
    capabilities: list[str]
    """completion, and, where the model has a way to write them that is known, tools and thinking."""


class OllamaAnswer(Struct, kw_only=True):
    """Counts and durations (ns) come with the last line, and with a whole answer."""

    model: str
    """The name that the request gave, or the first that the model is served under."""
    created_at: str
    """When this was written: RFC 3339, UTC."""
    done: bool
    """Whether all is told: true in the last line, and in a whole answer."""
    done_reason: Literal["stop", "length"] | UnsetType = UNSET
    """stop: it came to its own end or to a stop string; length: to num_predict, or to the end of the context."""
    total_duration: int | UnsetType = UNSET
    """From the request's arrival to the last token, ns."""
    load_duration: int | UnsetType = UNSET
    """Of loading the model: always 0, it is there."""
    prompt_eval_count: int | UnsetType = UNSET
    """Tokens of the prompt, those found in a cache included."""
    prompt_eval_duration: int | UnsetType = UNSET
    """From placement on workers to the first token, ns."""
    eval_count: int | UnsetType = UNSET
    """Tokens of the answer, thoughts and calls included."""
    eval_duration: int | UnsetType = UNSET
    """From the first token to the last, ns."""


class OllamaFunction(Struct):
    name: str
    """One of those that the request has."""
    arguments: dict[str, Any]
    """By their names."""


class OllamaCall(Struct):
    function: OllamaFunction
    """What is to be called."""


class OllamaMessage(Struct):
    role: Literal["assistant"]
    """Whose message it is."""
    content: str
    """The text, without thoughts and calls; of a line, what is to be added to it."""
    thinking: str | UnsetType = UNSET
    """What the model thinks first; of a line, what is to be added to it. Absent where that is nothing."""
    tool_calls: list[OllamaCall] | UnsetType = UNSET
    """Whole, when all are made; absent where there are none."""


class OllamaChat(OllamaAnswer, kw_only=True):
    """A message, or a part of it in a line."""

    message: OllamaMessage
    """What the assistant says."""


class OllamaText(OllamaAnswer, kw_only=True):
    """A text, or a part of it in a line."""

    response: str
    """The text, without thoughts; of a line, what is to be added to it."""
    thinking: str | UnsetType = UNSET
    """What the model thinks first; of a line, what is to be added to it. Absent where that is nothing."""
