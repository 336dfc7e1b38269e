"""OpenAI's routes."""

import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import JSONResponse, Response

from .answer_schema import answers, either, generates
from .bodies import read_body, understand
from .chat_request import CHAT_ALIASES, ChatRequest, parse_chat
from .completion_request import COMPLETION_ALIASES, DEFAULT_MAX_TOKENS, CompletionRequest, parse_completion
from .error_schemas import OpenAiError
from .errors import ApiError
from .exchange import rename
from .guidance_check import check_guidance
from .job import Core
from .kobold_running import RunningGenerations, client_address
from .messages_models import model_info, models_page, wants_anthropic
from .messages_schemas import AnthropicModel, AnthropicModels
from .openai_chat import ChatRenderer
from .openai_completions import CompletionRenderer
from .openai_schemas import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk, ModelCard, ModelList
from .request_id import request_id_of
from .request_schema import body_schema
from .served import Served
from .sse import GenerationResponse
from .text_stream import TextStream

MODEL_LISTS = either(ModelList, AnthropicModels)
MODEL_CARDS = either(ModelCard, AnthropicModel)
ModelName = Annotated[str, Path(description="One of those that /v1/models lists.")]


def openai_routes(core: Core, served: Served, running: RunningGenerations) -> APIRouter:
    """`running`: where generations with a genkey are found by Kobold's routes."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])
    completion_body = body_schema(CompletionRequest, COMPLETION_ALIASES, {"max_tokens": DEFAULT_MAX_TOKENS})
    chat_body = body_schema(ChatRequest, CHAT_ALIASES, {})

    @routes.get("/models", responses=answers(MODEL_LISTS))
    async def list_models(request: Request) -> Response:
        """The names that requests may give in `model`, in Anthropic's shape where the header `anthropic-version` is."""
        if wants_anthropic(request):
            return JSONResponse(models_page(served))
        return JSONResponse({"object": "list", "data": [model_card(name, served) for name in served.model_names]})

    @routes.get("/models/{model:path}", responses=answers(MODEL_CARDS, 404))
    async def show_model(model: ModelName, request: Request) -> Response:
        """One of them."""
        if model not in served.model_names:
            raise ApiError(404, f"model: there is no model {model!r} here", param="model", code="model_not_found")
        card = model_info if wants_anthropic(request) else model_card
        return JSONResponse(card(model, served))

    @routes.post(
        "/completions",
        openapi_extra=completion_body,
        responses=generates(Completion, either(CompletionChunk, OpenAiError), 404, last="[DONE]"),
    )
    async def complete(request: Request) -> Response:
        """Goes on from one or several prompts, as text or as token ids."""
        with running.arriving(client_address(request)):
            raw = await read_body(request, served.max_body_bytes)
            request_id = request_id_of(request.scope)
            asked, generation = await understand(raw, partial(parse_completion, request_id=request_id, served=served))
            rename(request.scope, generation.jobs[0].request_id)
            await check_guidance(generation.jobs[0].params.guidance, generation.guided_by, served.grammars)
        renderer = CompletionRenderer(asked, generation, served, int(time.time()))
        start = partial(TextStream, core, generation, served.tokenizer)
        during = running.under((client_address(request), asked.genkey))
        return GenerationResponse(start, renderer, stream=asked.stream, during=during)

    @routes.post(
        "/chat/completions",
        openapi_extra=chat_body,
        responses=generates(ChatCompletion, either(ChatCompletionChunk, OpenAiError), 404, last="[DONE]"),
    )
    async def chat(request: Request) -> Response:
        """The assistant's next message in a conversation, with its thoughts and calls of tools."""
        with running.arriving(client_address(request)):
            raw = await read_body(request, served.max_body_bytes)
            request_id = request_id_of(request.scope)
            asked, generation, form = await understand(raw, partial(parse_chat, request_id=request_id, served=served))
            rename(request.scope, generation.jobs[0].request_id)
            await check_guidance(generation.jobs[0].params.guidance, generation.guided_by, served.grammars)
        renderer = ChatRenderer(asked, generation, form, served, int(time.time()))
        start = partial(TextStream, core, generation, served.tokenizer)
        during = running.under((client_address(request), asked.genkey))
        return GenerationResponse(start, renderer, stream=asked.stream, during=during)

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
