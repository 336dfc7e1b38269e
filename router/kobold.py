"""Kobold's routes, as KoboldCpp has them. /api/latest is /api/v1."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta, Struct
from starlette.responses import JSONResponse, Response

from .. import __version__
from .accounts import account_name
from .bodies import read_body, understand
from .errors import bad_field
from .fields import convert, decode_json
from .guidance_check import check_guidance
from .job import Core
from .kobold_events import KoboldRenderer
from .kobold_request import ALIASES, DEFAULT_MAX_LENGTH, SAMPLING_DEFAULTS, KoboldRequest, lengths, parse_kobold
from .kobold_running import GenKey, RunningGenerations
from .logprobs_json import kobold_logprobs
from .request_id import request_id_of
from .request_schema import body_schema
from .served import Served
from .sse import GenerationResponse
from .text_stream import Generation, TextStream

KOBOLD_VERSION = "1.2.5"
"""Of the API that /api/v1 follows."""
KOBOLDCPP_VERSION = "1.104"
"""Clients switch features on by it: streaming (1.40), grammars (1.44), memory (1.49), DRY (1.70), XTC (1.74),
adaptive-p (1.104). What is missing, such as images, the capabilities say."""
CAPABILITIES = {
    "protected": False,
    "llm": True,
    "txt2img": False,
    "vision": False,
    "audio": False,
    "transcribe": False,
    "multiplayer": False,
    "websearch": False,
    "tts": False,
    "embeddings": False,
    "music": False,
    "savedata": False,
    "admin": 0,
    "router": False,
    "guidance": False,
    "jinja": False,
    "mcp": False,
}


class KeyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    genkey: Annotated[str, Meta(max_length=256)] = ""


class CountRequest(Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str
    special: bool = True
    """Count what the model expects before a prompt (BOS)."""


class KoboldRoutes:
    """The handlers, with the generations they may look at and abort."""

    def __init__(self, core: Core, served: Served):
        self._core = core
        self._served = served
        self.running = RunningGenerations()

    async def generate(self, request: Request) -> Response:
        asked, generation = await self._parse(request)
        return self._answer(request, asked, generation, stream=False)

    async def generate_stream(self, request: Request) -> Response:
        asked, generation = await self._parse(request)
        if asked.n != 1:
            raise bad_field("n", "must be 1 when streaming: the events do not say which choice they are of")
        return self._answer(request, asked, generation, stream=True)

    async def check(self, request: Request) -> Response:
        key = await self._key(request)
        return JSONResponse({"results": [{"text": self.running.text_so_far(key)}]})

    async def abort(self, request: Request) -> Response:
        """Answers with strings, as KoboldCpp does."""
        found = self.running.abort(await self._key(request))
        return JSONResponse({"success": "true" if found else "false", "done": "true"})

    async def last_logprobs(self, request: Request) -> Response:
        """Of the newest generation with this key, running or just ended; null where it asked for none."""
        scored = self.running.last_logprobs(await self._key(request))
        return JSONResponse({"logprobs": kobold_logprobs(scored, self._served.tokenizer) if scored else None})

    async def count_tokens(self, request: Request) -> Response:
        raw = await read_body(request, self._served.max_body_bytes)
        ids = await understand(raw, self._count)
        return JSONResponse({"value": len(ids), "ids": ids})

    async def _parse(self, request: Request) -> tuple[KoboldRequest, Generation]:
        raw = await read_body(request, self._served.max_body_bytes)
        request_id = request_id_of(request.scope)
        asked, generation = await understand(raw, partial(parse_kobold, request_id=request_id, served=self._served))
        await check_guidance(generation.jobs[0].params.guidance, generation.guided_by, self._served.grammars)
        return asked, generation

    def _answer(self, request: Request, asked: KoboldRequest, generation: Generation, *, stream: bool) -> Response:
        start = partial(TextStream, self._core, generation, self._served.tokenizer)
        during = partial(self.running.registered, (client_address(request), asked.genkey))
        return GenerationResponse(start, KoboldRenderer(self._served.tokenizer), stream=stream, during=during)

    async def _key(self, request: Request) -> GenKey:
        raw = await read_body(request, self._served.max_body_bytes)
        asked = convert(decode_json(raw), KeyRequest) if raw.strip() else KeyRequest()
        return client_address(request), asked.genkey

    def _count(self, raw: bytes) -> list[int]:
        asked = convert(decode_json(raw), CountRequest)
        return self._served.tokenizer.encode(asked.prompt, add_special_tokens=asked.special)


def kobold_routes(core: Core, served: Served, *, protected: bool = False) -> APIRouter:
    """`protected`: they ask for a key, which clients show."""
    handlers = KoboldRoutes(core, served)
    routes = APIRouter(prefix="/api", tags=["Kobold"])
    body = body_schema(KoboldRequest, ALIASES, SAMPLING_DEFAULTS)
    for version in ("/v1", "/latest"):
        routes.add_api_route(f"{version}/generate", handlers.generate, methods=["POST"], openapi_extra=body)
        for path, answer in facts(served).items():
            routes.add_api_route(version + path, answer_with(answer), methods=["GET"])
    routes.add_api_route("/extra/generate/stream", handlers.generate_stream, methods=["POST"], openapi_extra=body)
    for method in ("GET", "POST"):
        routes.add_api_route("/extra/generate/check", handlers.check, methods=[method])
    routes.add_api_route("/extra/last_logprobs", handlers.last_logprobs, methods=["POST"])
    routes.add_api_route("/extra/abort", handlers.abort, methods=["POST"])
    routes.add_api_route("/extra/tokencount", handlers.count_tokens, methods=["POST"])
    context = {"value": served.max_model_len}
    routes.add_api_route("/extra/true_max_context_length", answer_with(context), methods=["GET"])
    version_info = {"result": "KoboldCpp", "version": KOBOLDCPP_VERSION, **CAPABILITIES, "protected": protected}
    routes.add_api_route("/extra/version", answer_with(version_info), methods=["GET"])
    return routes


def facts(served: Served) -> dict[str, dict[str, Any]]:
    """What the GET routes below /api/v1 answer."""
    _, max_length = lengths(KoboldRequest(max_length=DEFAULT_MAX_LENGTH), served)
    info = {"version": __version__, "model": served.name, "max_context_length": served.max_model_len}
    return {
        "/model": {"result": f"koboldcpp/{served.name}"},
        "/info": {"result": "Isthmus", **info},
        "/info/version": {"result": KOBOLD_VERSION},
        "/config/max_length": {"value": max_length},
        "/config/max_context_length": {"value": served.max_model_len},
        "/config/soft_prompt": {"value": ""},
        "/config/soft_prompts_list": {"values": []},
    }


def answer_with(body: dict[str, Any]) -> Callable[[], Awaitable[Response]]:
    """A handler that always answers the same."""
    raw = msgspec.json.encode(body)

    async def answer() -> Response:
        return Response(raw, media_type="application/json")

    return answer


def client_address(request: Request) -> str:
    """With the name of its key, if it sent one: behind a proxy all clients have one address."""
    address = request.client.host if request.client else ""
    return f"{account_name(request.scope)}@{address}"
