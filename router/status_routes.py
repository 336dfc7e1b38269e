"""GET /v1/topology and /v1/timelines: what the page at /ui shows, for other pages too; and vLLM's /load."""

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from .answer_schema import answers
from .job import Core
from .service_schemas import Load, Timelines
from .topology import Topology

NO_STORE = {"Cache-Control": "no-store"}


def status_routes(core: Core) -> APIRouter:
    routes = APIRouter(tags=["status"])

    @routes.get("/v1/topology", responses=answers(Topology))
    async def topology() -> Response:
        """The router, its workers with queues, KV blocks and measured rates, and the links KV moves over."""
        return json_response(core.topology())

    @routes.get("/v1/timelines", responses=answers(Timelines))
    async def timelines() -> Response:
        """Of requests that run and of the last 200 that have ended, newest first: seconds in queue, prefill, transfer
        and decode, counts of tokens, workers. No text."""
        return json_response({"object": "list", "data": core.timelines()})

    @routes.get("/load", responses=answers(Load))
    async def load() -> Response:
        """Sequences that are queued or running: vLLM's figure, for balancers."""
        router = core.topology().router
        return json_response({"server_load": router.num_waiting + router.num_running})

    return routes


def json_response(body: object) -> Response:
    return Response(msgspec.json.encode(body), headers=NO_STORE, media_type="application/json")
