"""Routes that make vectors of texts, or scores of them. Those outside /v1 are other servers' names for the same."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from .bodies import read_body, understand
from .embeddings import EmbeddingRequest, KoboldEmbeddingRequest, parse_embeddings, parse_kobold_embeddings
from .job import Core
from .pooling_request import PoolingRequest, PoolingTask
from .pooling_response import PoolingResponse
from .request_id import request_id_of
from .request_schema import struct_schema
from .rerank import RerankRequest, parse_rerank
from .score import ScoreRequest, parse_score
from .served import Served

Parse = Callable[[bytes, str, Served], PoolingTask]

ROUTES: dict[str, tuple[type[PoolingRequest], Parse, str]] = {
    "/v1/embeddings": (EmbeddingRequest, parse_embeddings, "OpenAI"),
    "/api/extra/embeddings": (KoboldEmbeddingRequest, parse_kobold_embeddings, "Kobold"),
    **dict.fromkeys(("/v1/score", "/score"), (ScoreRequest, parse_score, "vLLM")),
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), (RerankRequest, parse_rerank, "vLLM")),
}


def pooling_routes(core: Core, served: Served) -> APIRouter:
    routes = APIRouter()
    bodies = {request: struct_schema(request) for request, _, _ in ROUTES.values()}
    for path, (request, parse, tag) in ROUTES.items():
        handler, name = handler_of(parse, core, served), path.strip("/").replace("/", "_")
        routes.add_api_route(path, handler, methods=["POST"], tags=[tag], name=name, openapi_extra=bodies[request])
    return routes


def handler_of(parse: Parse, core: Core, served: Served) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        raw = await read_body(request, served.max_body_bytes)
        request_id = request_id_of(request.scope)
        return PoolingResponse(core, await understand(raw, lambda body: parse(body, request_id, served)))

    return answer
