"""What routes that make vectors of texts answer, for OpenAPI's page."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class PoolingUsage(Struct):
    prompt_tokens: int
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
    usage: PoolingUsage
    data: list[Embedding]


class Score(Struct):
    index: int
    """Of the pair, in the request."""
    object: Literal["score"]
    score: float


class ScoreList(Struct):
    """How well the texts of each pair fit each other."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: PoolingUsage
    data: list[Score]


class RankedText(Struct):
    text: str


class Ranked(Struct):
    index: int
    """Of the document, in the request."""
    relevance_score: float
    document: RankedText | UnsetType = UNSET
    """Where `return_documents` asks for it."""


class Ranking(Struct):
    """Documents by how well they fit the query, the best first."""

    id: str
    model: str
    usage: PoolingUsage
    results: list[Ranked]
