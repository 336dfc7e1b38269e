"""What Kobold's clients are told before they generate, for OpenAPI's page: answers that never change."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field


class ModelFact(Struct):
    """The model's name."""

    result: str
    """The first of the names it is served under, after koboldcpp/."""


class ServerFact(Struct):
    """The server's name and version, and its model."""

    result: Literal["Isthmus"]
    """The server's name."""
    version: str
    """Of the server, such as 0.1.0."""
    model: str
    """The first of the names it is served under."""
    max_context_length: int
    """Tokens, prompt and output together."""


class VersionFact(Struct):
    """Version of this API."""

    result: str
    """Three numbers: KoboldAI's version whose API the routes below /api/v1 follow."""


class LengthFact(Struct):
    """Tokens that a request makes at most, unless it says so."""

    value: int
    """What max_length is where it is left out."""


class ContextFact(Struct):
    """Tokens, prompt and output together."""

    value: int
    """How many there are room for."""


class SoftPromptFact(Struct):
    """The soft prompt in use: there is none."""

    value: Literal[""]
    """Its name: always empty."""


class SoftPromptsFact(Struct):
    """Soft prompts: there are none."""

    values: list[str]
    """Their names: always empty."""


class KoboldCppFact(Struct):
    """KoboldCpp's version whose API this is, and what there is of it."""

    result: Literal["KoboldCpp"]
    """The server that this one is taken for: clients look for the name."""
    version: str
    """Two numbers; clients switch features on by it."""
    protected: bool
    """Whether an API key is needed."""
    llm: bool
    """Whether it generates text."""
    txt2img: bool
    """Whether it makes images."""
    vision: bool
    """Whether it takes images."""
    audio: bool
    """Whether it takes sound."""
    transcribe: bool
    """Whether it writes down what is spoken."""
    multiplayer: bool
    """Whether several users can share a story that is kept here."""
    websearch: bool
    """Whether it searches the web for its clients."""
    tts: bool
    """Whether it reads aloud."""
    embeddings: bool
    """Whether there is /api/extra/embeddings."""
    music: bool
    """Whether it makes music."""
    savedata: bool
    """Whether stories can be kept here."""
    admin: int
    """Whether clients may load other models: 0, they may not."""
    router: bool
    """Whether it loads models as requests name them."""
    guidance: bool
    """Whether it takes a second, negative prompt."""
    jinja: bool
    """Whether the model has a chat template, which chats are written with."""
    mcp: bool
    """Whether it calls tools by the Model Context Protocol for its clients."""


class NoStory(Struct):
    """A story to begin with: there is none."""


class Software(Struct):
    name: Literal["Isthmus"]
    """The server's name."""
    version: str
    """Of the server, such as 0.1.0."""
    repository: str
    """Where its code is: empty, not told."""
    homepage: str
    """Where its page is: empty, not told."""
    logo: str
    """Where its picture is: empty, there is none."""


class ApiFact(Struct):
    name: str
    """For people."""
    rel_url: str
    """The path that its routes are below."""
    documentation: str
    """The path of the page that describes it."""
    version: str
    """Of KoboldCpp, whose API it is, or of the server."""


class OpenAiFact(ApiFact):
    rel_url_: str = field(name="rel_url ")
    """The same as rel_url, in KoboldCpp's spelling."""


class Apis(Struct):
    koboldai: ApiFact
    """KoboldAI's and KoboldCpp's."""
    openai: OpenAiFact
    """OpenAI's."""


class ServiceFact(Struct):
    """Which APIs there are."""

    version: str
    """Of the convention that this answer follows."""
    software: Software
    """What serves them."""
    api: Apis
    """By the names that the convention has for them."""


ImageModels = Annotated[list[Any], Meta(description="Models that make images: there are none.")]
