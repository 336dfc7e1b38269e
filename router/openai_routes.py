"""OpenAI's routes."""

import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from .bodies import read_body, understand
from .chat_request import CHAT_ALIASES, ChatRequest, parse_chat
from .completion_request import COMPLETION_ALIASES, DEFAULT_MAX_TOKENS, CompletionRequest, parse_completion
from .errors import ApiError
from .guidance_check import check_guidance
from .job import Core
from .messages_models import model_info, models_page, wants_anthropic
from .openai_chat import ChatRenderer
from .openai_completions import CompletionRenderer
from .request_id import request_id_of
from .request_schema import body_schema
from .served import Served
from .sse import GenerationResponse
from .text_stream import TextStream


def openai_routes(core: Core, served: Served) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])
    completion_body = body_schema(CompletionRequest, COMPLETION_ALIASES, {"max_tokens": DEFAULT_MAX_TOKENS})
    chat_body = body_schema(ChatRequest, CHAT_ALIASES, {})

    @routes.get("/models")
    async def list_models(request: Request) -> Response:
        if wants_anthropic(request):
            return JSONResponse(models_page(served))
        return JSONResponse({"object": "list", "data": [model_card(name, served) for name in served.model_names]})

    @routes.get("/models/{model:path}")
    async def show_model(model: str, request: Request) -> Response:
        if model not in served.model_names:
            raise ApiError(404, f"model: there is no model {model!r} here", param="model", code="model_not_found")
        card = model_info if wants_anthropic(request) else model_card
        return JSONResponse(card(model, served))

    @routes.post("/completions", openapi_extra=completion_body)
    async def complete(request: Request) -> Response:
        raw = await read_body(request, served.max_body_bytes)
        request_id = request_id_of(request.scope)
        asked, generation = await understand(raw, partial(parse_completion, request_id=request_id, served=served))
        await check_guidance(generation.jobs[0].params.guidance, generation.guided_by, served.grammars)
        renderer = CompletionRenderer(asked, generation, served, int(time.time()))
        start = partial(TextStream, core, generation, served.tokenizer)
        return GenerationResponse(start, renderer, stream=asked.stream)

    @routes.post("/chat/completions", openapi_extra=chat_body)
    async def chat(request: Request) -> Response:
        raw = await read_body(request, served.max_body_bytes)
        request_id = request_id_of(request.scope)
        asked, generation, form = await understand(raw, partial(parse_chat, request_id=request_id, served=served))
        await check_guidance(generation.jobs[0].params.guidance, generation.guided_by, served.grammars)
        renderer = ChatRenderer(asked, generation, form, served, int(time.time()))
        start = partial(TextStream, core, generation, served.tokenizer)
        return GenerationResponse(start, renderer, stream=asked.stream)

    return routes


def model_card(name: str, served: Served) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "isthmus",
        "root": served.name,
        "parent": None,
        "max_model_len": served.max_model_len,
    }
