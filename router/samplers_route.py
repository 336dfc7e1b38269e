"""GET /v1/samplers: what can be set, within which range, for user interfaces."""

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from ..wire.sampler_lists import KOBOLD, KOBOLD_ORDER, NAMES
from ..wire.sampling import DEFAULT_ORDER
from ..wire.sampling_table import Parameter, parameters
from .answer_schema import answers
from .completion_request import DEFAULT_MAX_TOKENS
from .kobold_request import DEFAULT_MAX_LENGTH, SAMPLING_DEFAULTS
from .openai_schemas import Samplers

ROUTE_DEFAULTS: dict[str, dict[str, Any]] = {
    "openai": {"sampler_priority": DEFAULT_ORDER, "max_tokens": DEFAULT_MAX_TOKENS},
    "kobold": {**SAMPLING_DEFAULTS, "max_tokens": DEFAULT_MAX_LENGTH},
}
"""By API, where a parameter that is left out is not neutral. A chat's `max_tokens` is what the context leaves."""


def samplers_routes() -> APIRouter:
    routes = APIRouter(tags=["OpenAI"])
    raw = msgspec.json.encode(
        {"object": "list", "data": [with_defaults(one) for one in parameters()], "order": describe_order()}
    )

    async def samplers() -> Response:
        """All sampling parameters: name, other names, kind, group, range, slider, neutral value, defaults of OpenAI's
        and Kobold's routes, help; and the orders of samplers, with the names and ids that lists of them may hold."""
        return Response(raw, media_type="application/json")

    routes.add_api_route("/v1/samplers", samplers, methods=["GET"], responses=answers(Samplers))
    return routes


def with_defaults(parameter: Parameter) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(parameter)
    row["defaults"] = {api: known.get(parameter.name, parameter.neutral) for api, known in ROUTE_DEFAULTS.items()}
    return row


def describe_order() -> dict[str, Any]:
    return {
        "names": {whose: list(names) for whose, names in NAMES.items()},
        "kobold_ids": dict(enumerate(KOBOLD)),
        "kobold_default": KOBOLD_ORDER,
    }
