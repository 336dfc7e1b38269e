"""Ollama's routes, as far as clients need them to list the model and talk to it."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import JSONResponse, Response

from .answer_schema import answers, generates_lines
from .bodies import read_body, understand
from .guidance_check import check_guidance
from .job import Core
from .limits import check_model
from .ollama_lines import LINE_HEADERS, OllamaRenderer
from .ollama_request import ChatRequest, GenerateRequest, Parsed, model_named, parse_chat, parse_generate, read
from .ollama_schemas import OllamaChat, OllamaFacts, OllamaModels, OllamaText, OllamaVersion
from .request_id import request_id_of
from .request_schema import struct_schema
from .served import Served
from .sse import GenerationResponse
from .text_stream import TextStream

OLLAMA_VERSION = "0.7.0"
"""Of the API that these routes follow."""


class ShowRequest(Struct, frozen=True, forbid_unknown_fields=True):
    model: str | None = None
    """One of those that /api/tags lists; may be left out."""
    name: str | None = None
    """Another name of model."""
    verbose: bool = False
    """There is no more to tell."""


class OllamaRoutes:
    """The handlers."""

    def __init__(self, core: Core, served: Served):
        self._core = core
        self._served = served

    async def generate(self, request: Request) -> Response:
        """Answers a prompt, or goes on from it."""
        return await self._answer(request, parse_generate, is_chat=False)

    async def chat(self, request: Request) -> Response:
        """The assistant's next message in a conversation."""
        return await self._answer(request, parse_chat, is_chat=True)

    async def tags(self) -> Response:
        """The names that requests may give in `model`."""
        return JSONResponse({"models": [model_entry(name, self._served) for name in self._served.model_names]})

    async def version(self) -> Response:
        """The version of Ollama whose API this is."""
        return JSONResponse({"version": OLLAMA_VERSION})

    async def show(self, request: Request) -> Response:
        """What the model can do, its chat template and its context."""
        raw = await read_body(request, self._served.max_body_bytes)
        asked = read(raw, ShowRequest)
        check_model(model_named(asked.model or asked.name, self._served), self._served)
        return JSONResponse(model_facts(self._served))

    async def _answer(
        self, request: Request, parse: Callable[[bytes, str, Served], Parsed], *, is_chat: bool
    ) -> Response:
        served = self._served
        raw = await read_body(request, served.max_body_bytes)
        request_id = request_id_of(request.scope)
        asked, generation, form = await understand(raw, lambda body: parse(body, request_id, served))
        await check_guidance(generation.jobs[0].params.guidance, generation.guided_by, served.grammars)
        renderer = OllamaRenderer(asked.model or served.name, form, is_chat=is_chat)
        start = partial(TextStream, self._core, generation, served.tokenizer)
        return GenerationResponse(start, renderer, stream=asked.stream, headers=LINE_HEADERS)


def ollama_routes(core: Core, served: Served) -> APIRouter:
    routes, handlers = APIRouter(prefix="/api", tags=["Ollama"]), OllamaRoutes(core, served)
    for path, handler, body, told in (
        ("/generate", handlers.generate, GenerateRequest, generates_lines(OllamaText)),
        ("/chat", handlers.chat, ChatRequest, generates_lines(OllamaChat)),
        ("/show", handlers.show, ShowRequest, answers(OllamaFacts, 404)),
    ):
        extra = struct_schema(body, nulls=True)
        routes.add_api_route(path, handler, methods=["POST"], openapi_extra=extra, responses=told)
    routes.add_api_route("/tags", handlers.tags, methods=["GET"], responses=answers(OllamaModels))
    routes.add_api_route("/version", handlers.version, methods=["GET"], responses=answers(OllamaVersion))
    return routes


def model_entry(name: str, served: Served) -> dict[str, Any]:
    created = datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z")
    digest = sha256(f"{name} {served.system_fingerprint}".encode()).hexdigest()
    return {"name": name, "model": name, "modified_at": created, "size": 0, "digest": digest, "details": details()}


def details() -> dict[str, Any]:
    """Of the model's file, which a router does not read."""
    names = ("parent_model", "format", "family", "parameter_size", "quantization_level")
    return {**dict.fromkeys(names, ""), "families": []}


def model_facts(served: Served) -> dict[str, Any]:
    """Clients look up the context length below the architecture's name, and whether there are tools."""
    can = {"completion": True, "tools": served.call_format is not None, "thinking": served.reasoning is not None}
    return {
        "modelfile": "",
        "parameters": "",
        "template": "" if served.chat_template is None else served.chat_template.source,
        "details": details(),
        "model_info": {"general.architecture": "isthmus", "isthmus.context_length": served.max_model_len},
        "capabilities": [name for name, is_so in can.items() if is_so],
    }
