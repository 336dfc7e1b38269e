"""GET /v1/samplers: what can be set, within which range, for user interfaces."""

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from ..wire.sampling import DEFAULT_ORDER
from ..wire.sampling_table import parameters
from .kobold_request import SAMPLING_DEFAULTS


def samplers_routes() -> APIRouter:
    routes = APIRouter(tags=["OpenAI"])
    answer = {
        "object": "list",
        "data": parameters(),
        "order": DEFAULT_ORDER,
        "kobold_defaults": SAMPLING_DEFAULTS,
    }
    raw = msgspec.json.encode(answer)

    async def samplers() -> Response:
        """All sampling parameters: name, type, range, default, help, other names; the default order of samplers; and
        where the defaults of Kobold's routes are others."""
        return Response(raw, media_type="application/json")

    routes.add_api_route("/v1/samplers", samplers, methods=["GET"])
    return routes
