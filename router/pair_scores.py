"""How well texts fit each other: as a model says that reads both together, or as their vectors point the same way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import bad_field
from .job import Job
from .pooling_request import PoolingRequest, check_length, max_tokens_of, pooling_jobs, text_ids
from .served import Served


@dataclass(frozen=True, slots=True)
class NamedTexts:
    """Texts, and the field they came in."""

    texts: Sequence[str]
    param: str
    is_list: bool = True
    max_tokens: int | None = None
    """Of each text; what is longer is cut, at its end."""

    def name(self, index: int) -> str:
        """Of one of them, in error messages."""
        return f"{self.param}[{index}]" if self.is_list else self.param


@dataclass(frozen=True, slots=True)
class PairScores:
    """Jobs, and the scores of all pairs from their vectors."""

    jobs: tuple[Job, ...]
    score: Callable[[Sequence[np.ndarray]], list[float]]


def score_pairs(
    first: NamedTexts, second: NamedTexts, request: PoolingRequest, request_id: str, served: Served
) -> PairScores:
    """Of the only text of `first`, or the one at the same place, with each of `second`. Raises ApiError (400)."""
    if served.pooling.kind == "score":
        return _read_together(first, second, request, request_id, served)
    return _compare_vectors(first, second, request, request_id, served)


def _compare_vectors(
    first: NamedTexts, second: NamedTexts, request: PoolingRequest, request_id: str, served: Served
) -> PairScores:
    """The cosine of their angle; each text is computed once."""
    ids = [
        text_ids(text, named.name(index), request, served, max_own=named.max_tokens)
        for named in (first, second)
        for index, text in enumerate(named.texts)
    ]
    num_first = len(first.texts)

    def score(vectors: Sequence[np.ndarray]) -> list[float]:
        ones = np.stack(vectors[:num_first]).astype(np.float64)
        others = np.stack(vectors[num_first:]).astype(np.float64)
        return cosines(ones, others).tolist()

    return PairScores(pooling_jobs(request_id, ids, request, served), score)


def cosines(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[1 or N, D] and [N, D] -> [N]; 0 where one of the two is all zeros."""
    lengths = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1)
    products = (ones * others).sum(1)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def _read_together(
    first: NamedTexts, second: NamedTexts, request: PoolingRequest, request_id: str, served: Served
) -> PairScores:
    """The model's one label, as sentence-transformers' CrossEncoder has it: between 0 and 1 unless its folder says
    otherwise."""
    is_shared = len(first.texts) == 1
    ids = []
    for index in range(len(second.texts)):
        at = 0 if is_shared else index
        for named, place in ((first, at), (second, index)):
            if not named.texts[place]:
                raise bad_field(named.name(place), "must not be empty")
        ids.append(_pair_ids(first.texts[at], index, second, request, served))

    def score(vectors: Sequence[np.ndarray]) -> list[float]:
        logits = np.concatenate([vector[:1] for vector in vectors]).astype(np.float64)
        return (logits if served.pooling.activation == "identity" else sigmoid(logits)).tolist()

    return PairScores(pooling_jobs(request_id, ids, request, served), score)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # which does not overflow


def _pair_ids(first: str, index: int, second: NamedTexts, request: PoolingRequest, served: Served) -> list[int]:
    limits = max_tokens_of(request, served), second.max_tokens
    try:
        ids = served.tokenizer.encode_pair(first, second.texts[index], *limits)
    except ValueError as error:
        raise bad_field("truncate_prompt_tokens", str(error)) from None
    check_length(ids, second.name(index), served)
    return ids
