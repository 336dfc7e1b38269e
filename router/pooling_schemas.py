"""What routes that make vectors of texts answer, for OpenAPI's page."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class PoolingUsage(Struct):
    prompt_tokens: int
    """Of all texts, as the model reads them."""
    total_tokens: int
    """The same: nothing is generated."""


class Embedding(Struct):
    object: Literal["embedding"]
    index: int
    """Of the text, in the request."""
    embedding: list[float] | str
    """Numbers, or base64 where `encoding_format` asks for it."""


class EmbeddingList(Struct):
    """One vector for each text."""

    object: Literal["list"]
    model: str
    """The name that the request gave, or the first that the model is served under."""
    usage: PoolingUsage
    """What was computed."""
    data: list[Embedding]
    """In the order of the texts."""


class Score(Struct):
    index: int
    """Of the pair, in the request."""
    object: Literal["score"]
    score: float
    """The more, the better they fit: from 0 to 1 of a model that scores pairs, unless its folder says otherwise; else
    the cosine of their vectors' angle, -1 to 1."""


class ScoreList(Struct):
    """How well the texts of each pair fit each other."""

    id: str
    """The request's X-Request-Id, after score-."""
    object: Literal["list"]
    created: int
    """When the request came: Unix time, seconds."""
    model: str
    """The name that the request gave, or the first that the model is served under."""
    usage: PoolingUsage
    """What was computed."""
    data: list[Score]
    """In the order of the pairs."""


class RankedText(Struct):
    text: str
    """As the request gave it."""


class Ranked(Struct):
    index: int
    """Of the document, in the request."""
    relevance_score: float
    """The more, the better it fits, as in /v1/score."""
    document: RankedText | UnsetType = UNSET
    """Unless `return_documents` is false."""


class Ranking(Struct):
    """Documents by how well they fit the query, the best first."""

    id: str
    """The request's X-Request-Id, after rerank-."""
    model: str
    """The name that the request gave, or the first that the model is served under."""
    usage: PoolingUsage
    """What was computed."""
    results: list[Ranked]
    """As many as `top_n` says; of equals, the one that was named first is the first."""
