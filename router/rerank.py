"""POST /v1/rerank, as Jina, Cohere and vLLM have it."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from .pair_scores import NamedTexts, score_pairs
from .pooling_request import PoolingRequest, PoolingTask, check_num_inputs, read_request, usage_of
from .served import Served

Text = Annotated[str, Meta(extra_json_schema={"minLength": 1})]


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    text: Text
    """A text to put in order."""


class RerankRequest(PoolingRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    query: Text
    """What is looked for."""
    documents: Annotated[list[Text | Document], Meta(min_length=1)]
    """Texts to put in order."""
    top_n: Annotated[int, Meta(ge=0)] = 0
    """Return so many, the best ones; 0: all."""
    return_documents: bool = True
    """With their texts."""
    max_tokens_per_doc: Annotated[int, Meta(ge=1)] | None = None
    """Keep so many tokens of each document, from its beginning."""
    max_chunks_per_doc: None = None
    """Not built: documents are read whole; max_tokens_per_doc cuts them."""
    rank_fields: None = None
    """Not built: documents have no field but text."""


def parse_rerank(raw: bytes, request_id: str, served: Served) -> PoolingTask:
    """Raises ApiError. Safe in a thread, for large bodies."""
    request = read_request(raw, RerankRequest, served)
    request_id = request.request_id or request_id
    check_num_inputs(len(request.documents), "documents")
    texts = [document if isinstance(document, str) else document.text for document in request.documents]
    query = NamedTexts([request.query], "query", is_list=False)
    documents = NamedTexts(texts, "documents", max_tokens=request.max_tokens_per_doc)
    pairs = score_pairs(query, documents, request, request_id, served)
    head = {"id": f"rerank-{request_id}", "model": request.model or served.name, "usage": usage_of(pairs.jobs)}

    def render(vectors: Sequence[np.ndarray]) -> bytes:
        results = ranked(pairs.score(vectors), request.top_n)
        shown = [{**result, "document": {"text": texts[result["index"]]}} for result in results]
        return msgspec.json.encode({**head, "results": shown if request.return_documents else results})

    return PoolingTask(pairs.jobs, render)


def ranked(scores: Sequence[float], top_n: int) -> list[dict[str, Any]]:
    """The best first, and of equals the one that was named first."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [{"index": index, "relevance_score": scores[index]} for index in order[: top_n or None]]
