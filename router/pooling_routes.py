"""Routes that make vectors of texts, or scores of them. Those outside /v1 are other servers' names for the same."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import Response

from .answer_schema import generates
from .bodies import read_body, understand
from .embeddings import EmbeddingRequest, KoboldEmbeddingRequest, parse_embeddings, parse_kobold_embeddings
from .exchange import rename
from .job import Core
from .pooling_request import PoolingRequest, PoolingTask
from .pooling_response import PoolingResponse
from .pooling_schemas import EmbeddingList, Ranking, ScoreList
from .request_id import request_id_of
from .request_schema import struct_schema
from .rerank import RerankRequest, parse_rerank
from .score import ScoreRequest, parse_score
from .served import Served

Parse = Callable[[bytes, str, Served], PoolingTask]


@dataclass(frozen=True, slots=True)
class Kind:
    """What routes of one kind take, and what they answer."""

    request: type[PoolingRequest]
    parse: Parse
    answer: type[Struct]
    description: str
    tag: str = "OpenAI"


EMBEDDINGS = Kind(EmbeddingRequest, parse_embeddings, EmbeddingList, "One vector for each text.")
KOBOLD = Kind(KoboldEmbeddingRequest, parse_kobold_embeddings, EmbeddingList, "As /v1/embeddings.", "Kobold")
SCORE = Kind(ScoreRequest, parse_score, ScoreList, "How well the texts of each pair fit each other.")
RERANK = Kind(RerankRequest, parse_rerank, Ranking, "Documents by how well they fit a query, the best first.")
ROUTES = {
    "/v1/embeddings": EMBEDDINGS,
    "/api/extra/embeddings": KOBOLD,
    **dict.fromkeys(("/v1/score", "/score"), SCORE),
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), RERANK),
}


def pooling_routes(core: Core, served: Served) -> APIRouter:
    routes = APIRouter()
    for path, kind in ROUTES.items():
        routes.add_api_route(
            path,
            handler_of(kind.parse, core, served),
            methods=["POST"],
            tags=[kind.tag],
            name=path.strip("/").replace("/", "_"),
            description=kind.description,
            openapi_extra=struct_schema(kind.request, nulls=True),
            responses=generates(kind.answer, None, 404),
        )
    return routes


def handler_of(parse: Parse, core: Core, served: Served) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        raw = await read_body(request, served.max_body_bytes)
        request_id = request_id_of(request.scope)
        task = await understand(raw, lambda body: parse(body, request_id, served))
        rename(request.scope, task.jobs[0].request_id)
        return PoolingResponse(core, task)

    return answer
