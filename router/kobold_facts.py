"""What Kobold's clients ask before they generate: names, versions, limits. Answers that never change."""

from collections.abc import Awaitable, Callable
from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta, Struct
from starlette.responses import JSONResponse, RedirectResponse, Response

from .. import __version__
from .answer_schema import answers
from .bodies import read_body
from .fields import convert, decode_json
from .kobold_fact_schemas import (
    ContextFact,
    ImageModels,
    KoboldCppFact,
    LengthFact,
    ModelFact,
    NoStory,
    ServerFact,
    ServiceFact,
    SoftPromptFact,
    SoftPromptsFact,
    VersionFact,
)
from .kobold_request import DEFAULT_MAX_LENGTH, KoboldRequest, lengths
from .kobold_schemas import Nothing
from .request_schema import struct_schema
from .schemas import schema_of
from .served import Served

KOBOLD_VERSION = "1.2.5"
"""Of the API that /api/v1 follows."""
KOBOLDCPP_VERSION = "1.104"
"""Clients switch features on by it: streaming (1.40), grammars (1.44), memory (1.49), DRY (1.70), XTC (1.74), instruct
placeholders (1.102), adaptive-p (1.104). What is missing, such as images, the capabilities say."""
CAPABILITIES = {
    "llm": True,
    "txt2img": False,
    "vision": False,
    "audio": False,
    "transcribe": False,
    "multiplayer": False,
    "websearch": False,
    "tts": False,
    "embeddings": True,
    "music": False,
    "savedata": False,
    "admin": 0,
    "router": False,
    "guidance": False,
    "jinja": False,  # true where the model has a chat template
    "mcp": False,
}


class SoftPromptRequest(Struct, frozen=True, forbid_unknown_fields=True):
    value: Annotated[str, Meta(max_length=0, description="the soft prompt to use: there are none")] = ""


def kobold_fact_routes(served: Served, *, protected: bool) -> APIRouter:
    """`protected`: they ask for a key, which clients show."""
    routes = APIRouter()
    for path, (kind, answer) in facts(served, protected=protected).items():
        how: dict[str, Any] = {
            "name": PurePosixPath(path).name,
            "description": schema_of(kind)["description"],
            "responses": answers(kind),
        }
        routes.add_api_route(path, answer_with(answer), methods=["GET"], **how)
    for path in ("/api", "/api/v1", "/api/latest"):
        routes.add_api_route(path, show_docs, methods=["GET"], include_in_schema=False)
    for version in ("v1", "latest"):
        path, body = f"/api/{version}/config/soft_prompt", struct_schema(SoftPromptRequest)
        told = answers(Nothing)
        routes.add_api_route(path, choose_soft_prompt, methods=["PUT"], openapi_extra=body, responses=told)
    return routes


def facts(served: Served, *, protected: bool) -> dict[str, tuple[Any, Any]]:
    """What they are, a struct or another type with a description, and the answer, by path."""
    shared = version_facts(served)
    can = {**CAPABILITIES, "jinja": served.chat_template is not None}
    version = {"result": "KoboldCpp", "version": KOBOLDCPP_VERSION, "protected": protected, **can}
    return {
        **{f"/api/{version}{path}": answer for version in ("v1", "latest") for path, answer in shared.items()},
        "/api/extra/true_max_context_length": (ContextFact, {"value": served.max_model_len}),
        "/api/extra/version": (KoboldCppFact, version),
        "/api/extra/preloadstory": (NoStory, {}),
        "/.well-known/serviceinfo": (ServiceFact, service_info()),
        "/sdapi/v1/sd-models": (ImageModels, []),
    }


def version_facts(served: Served) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Of the routes below /api/v1."""
    _, max_length = lengths(KoboldRequest(max_length=DEFAULT_MAX_LENGTH), served)
    info = {"version": __version__, "model": served.name, "max_context_length": served.max_model_len}
    return {
        "/model": (ModelFact, {"result": f"koboldcpp/{served.name}"}),
        "/info": (ServerFact, {"result": "Isthmus", **info}),
        "/info/version": (VersionFact, {"result": KOBOLD_VERSION}),
        "/config/max_length": (LengthFact, {"value": max_length}),
        "/config/max_context_length": (ContextFact, {"value": served.max_model_len}),
        "/config/soft_prompt": (SoftPromptFact, {"value": ""}),
        "/config/soft_prompts_list": (SoftPromptsFact, {"values": []}),
    }


def service_info() -> dict[str, Any]:
    """Which APIs there are, by the Kobold community's convention. KoboldCpp misspells a name: both are there."""
    openai = {"name": "OpenAI API", "rel_url": "/v1", "rel_url ": "/v1", "documentation": "/docs"}
    return {
        "version": "0.2",
        "software": {"name": "Isthmus", "version": __version__, "repository": "", "homepage": "", "logo": ""},
        "api": {
            "koboldai": {
                "name": "KoboldAI API",
                "rel_url": "/api",
                "documentation": "/docs",
                "version": KOBOLDCPP_VERSION,
            },
            "openai": {**openai, "version": __version__},
        },
    }


async def show_docs() -> Response:
    return RedirectResponse("/docs", 302)


async def choose_soft_prompt(request: Request) -> Response:
    """AI Horde's workers set it, to none."""
    convert(decode_json(await read_body(request, 4096)), SoftPromptRequest)
    return JSONResponse({})


def answer_with(body: Any) -> Callable[[], Awaitable[Response]]:
    """A handler that always answers the same."""
    raw = msgspec.json.encode(body)

    async def answer() -> Response:
        return Response(raw, media_type="application/json")

    return answer
