"""What routes between text and tokens answer, for OpenAPI's page."""

from msgspec import Struct


class Tokenized(Struct):
    """The tokens of a text or a conversation."""

    count: int
    max_model_len: int
    """Tokens of the longest prompt with its answer."""
    tokens: list[int]
    token_strs: list[str] | None
    """As the vocabulary spells them, where that is asked for."""


class DetokenizedText(Struct):
    """The text of the tokens."""

    prompt: str
