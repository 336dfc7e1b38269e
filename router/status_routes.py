"""GET /v1/topology and /v1/timelines: what the page at /ui shows, for other pages too."""

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from .answer_schema import answers
from .job import Core
from .service_schemas import Timelines
from .topology import Topology

NO_STORE = {"Cache-Control": "no-store"}


def status_routes(core: Core) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["status"])

    @routes.get("/topology", responses=answers(Topology))
    async def topology() -> Response:
        """The router, its workers with queues, KV blocks and measured rates, and the links KV moves over."""
        return json_response(core.topology())

    @routes.get("/timelines", responses=answers(Timelines))
    async def timelines() -> Response:
        """Of requests that run and of the last 200 that have ended, newest first: seconds in queue, prefill, transfer
        and decode, counts of tokens, workers. No text."""
        return json_response({"object": "list", "data": core.timelines()})

    return routes


def json_response(body: object) -> Response:
    return Response(msgspec.json.encode(body), headers=NO_STORE, media_type="application/json")
