"""What routes between text and tokens answer, for OpenAPI's page."""

from msgspec import Struct


class Tokenized(Struct):
    """The tokens of a text or a conversation."""

    count: int
    """How many tokens there are."""
    max_model_len: int
    """Tokens of the longest prompt with its answer."""
    tokens: list[int]
    """Their ids, in order."""
    token_strs: list[str] | None
    """As the vocabulary spells them, such as Ġthe; null without return_token_strs."""


class DetokenizedText(Struct):
    """The text of the tokens."""

    prompt: str
    """With special tokens as they are spelt; bytes that are no whole characters are replaced."""
