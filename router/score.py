"""POST /v1/score, as vLLM has it."""

import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from .errors import bad_field
from .pair_scores import NamedTexts, score_pairs
from .pooling_request import PoolingRequest, PoolingTask, check_num_inputs, read_request, usage_of
from .served import Served

Texts = str | Annotated[list[str], Meta(min_length=1)]


class ScoreRequest(PoolingRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    text_1: Texts
    """One text, which is held against each of `text_2`, or as many texts as there are in `text_2`."""
    text_2: Texts
    """The texts to score."""


def parse_score(raw: bytes, request_id: str, served: Served) -> PoolingTask:
    """Raises ApiError. Safe in a thread, for large bodies."""
    request = read_request(raw, ScoreRequest, served)
    request_id = request.request_id or request_id
    first, second = named(request.text_1, "text_1"), named(request.text_2, "text_2")
    check_num_inputs(len(first.texts) + len(second.texts), "text_2")
    if len(first.texts) not in (1, len(second.texts)):
        raise bad_field("text_1", f"{len(first.texts)} texts for {len(second.texts)} of text_2: give one, or as many")
    pairs = score_pairs(first, second, request, request_id, served)
    head = {
        "id": f"score-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": request.model or served.name,
        "usage": usage_of(pairs.jobs),
    }

    def render(vectors: Sequence[np.ndarray]) -> bytes:
        scores = pairs.score(vectors)
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        return msgspec.json.encode({**head, "data": data})

    return PoolingTask(pairs.jobs, render)


def named(texts: str | list[str], param: str) -> NamedTexts:
    return NamedTexts([texts], param, is_list=False) if isinstance(texts, str) else NamedTexts(texts, param)
