"""Kobold's routes that generate, and those that follow a generation, as KoboldCpp has them. /api/latest is /api/v1."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request
from msgspec import Meta, Struct
from starlette.responses import JSONResponse, Response

from .answer_schema import answers, generates
from .bodies import read_body, understand
from .errors import bad_field
from .fields import convert, decode_json
from .guidance_check import check_guidance
from .job import Core
from .kobold_events import KoboldRenderer
from .kobold_facts import kobold_fact_routes
from .kobold_grammar import kobold_grammar_routes
from .kobold_perf import perf
from .kobold_request import ALIASES, SAMPLING_DEFAULTS, KoboldRequest, parse_kobold
from .kobold_running import GenKey, RunningGenerations, client_address
from .kobold_schemas import AbortTold, Checked, KoboldAnswer, KoboldEvent, LastLogprobs, Perf, Props
from .kobold_tokens import kobold_token_routes
from .logprobs_json import kobold_logprobs
from .request_id import request_id_of
from .request_schema import body_schema, struct_schema
from .served import Served
from .sse import GenerationResponse
from .text_stream import Generation, TextStream


class KeyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    genkey: Annotated[str, Meta(max_length=256)] | None = None
    """Names the generation, as its request did."""


class KoboldRoutes:
    """The handlers, with the generations they may look at and abort."""

    def __init__(self, core: Core, served: Served, running: RunningGenerations):
        self._core = core
        self._served = served
        self.running = running

    async def generate(self, request: Request) -> Response:
        """Goes on from a prompt."""
        asked, generation = await self._parse(request)
        return self._answer(request, asked, generation, stream=False)

    async def generate_stream(self, request: Request) -> Response:
        """Goes on from a prompt, and sends the text while it is made."""
        asked, generation = await self._parse(request)
        if asked.n != 1:
            raise bad_field("n", "must be 1 when streaming: the events do not say which choice they are of")
        return self._answer(request, asked, generation, stream=True)

    async def check(self, request: Request) -> Response:
        """The text so far of the newest generation with this key, running or just ended."""
        key = await self._key(request)
        return JSONResponse({"results": [{"text": self.running.text_so_far(key)}]})

    async def abort(self, request: Request) -> Response:
        """Ends the generations with this key. Answers with strings, as KoboldCpp does."""
        aborted = self.running.abort(await self._key(request))
        return JSONResponse({"success": told(aborted.success), "done": told(aborted.done)})

    async def last_logprobs(self, request: Request) -> Response:
        """Of the newest generation with this key, running or just ended; null where it asked for none."""
        scored = self.running.last_logprobs(await self._key(request))
        return JSONResponse({"logprobs": kobold_logprobs(scored, self._served.tokenizer) if scored else None})

    async def perf(self) -> Response:
        """Figures of the request that ended last, and of the queue."""
        return JSONResponse(perf(self._core.topology(), self._core.timelines()))

    async def props(self) -> Response:
        """llama.cpp's description of the server, which KoboldCpp gives too."""
        template, context = self._served.chat_template, self._served.max_model_len
        decode = [worker for worker in self._core.topology().workers if worker.role == "decode"]
        return JSONResponse(
            {
                "chat_template": "" if template is None else template.source,
                "total_slots": sum(worker.max_num_seqs for worker in decode),
                "modalities": {"vision": False, "audio": False},
                "model_path": self._served.name,
                "n_ctx": context,
                "default_generation_settings": {"n_ctx": context},
            }
        )

    async def _parse(self, request: Request) -> tuple[KoboldRequest, Generation]:
        with self.running.arriving(client_address(request)):
            raw = await read_body(request, self._served.max_body_bytes)
            parse = partial(parse_kobold, request_id=request_id_of(request.scope), served=self._served)
            asked, generation = await understand(raw, parse)
            params = generation.jobs[0].params
            await check_guidance(params.guidance, generation.guided_by, self._served.grammars)
        return asked, generation

    def _answer(self, request: Request, asked: KoboldRequest, generation: Generation, *, stream: bool) -> Response:
        start = partial(TextStream, self._core, generation, self._served.tokenizer)
        during = partial(self.running.registered, (client_address(request), asked.genkey))
        return GenerationResponse(start, KoboldRenderer(self._served.tokenizer), stream=stream, during=during)

    async def _key(self, request: Request) -> GenKey:
        raw = await read_body(request, self._served.max_body_bytes)
        asked = convert(decode_json(raw), KeyRequest) if raw.strip() else KeyRequest()
        return client_address(request), asked.genkey or ""


def kobold_routes(core: Core, served: Served, running: RunningGenerations, *, protected: bool = False) -> APIRouter:
    """`running`: those of OpenAI's routes with a genkey too. `protected`: they ask for a key, which clients show."""
    handlers = KoboldRoutes(core, served, running)
    routes = APIRouter(tags=["Kobold"])
    body = body_schema(KoboldRequest, ALIASES, SAMPLING_DEFAULTS, untold=["prompt_logprobs"])
    get, post = partial(routes.add_api_route, methods=["GET"]), partial(routes.add_api_route, methods=["POST"])
    for version in ("v1", "latest"):
        path = f"/api/{version}/generate"
        post(path, handlers.generate, openapi_extra=body, responses=generates(KoboldAnswer, None))
    streamed = generates(None, KoboldEvent)
    post("/api/extra/generate/stream", handlers.generate_stream, openapi_extra=body, responses=streamed)
    key = struct_schema(KeyRequest, optional=True)
    get("/api/extra/generate/check", handlers.check, responses=answers(Checked, 400, 408, 413))
    post("/api/extra/generate/check", handlers.check, openapi_extra=key, responses=answers(Checked))
    post("/api/extra/last_logprobs", handlers.last_logprobs, openapi_extra=key, responses=answers(LastLogprobs))
    post("/api/extra/abort", handlers.abort, openapi_extra=key, responses=answers(AbortTold))
    get("/api/extra/perf", handlers.perf, responses=answers(Perf))
    for method in (get, post):
        method("/props", handlers.props, responses=answers(Props))
    routes.include_router(kobold_token_routes(served))
    routes.include_router(kobold_grammar_routes(served))
    routes.include_router(kobold_fact_routes(served, protected=protected))
    return routes


def told(value: bool) -> str:
    return "true" if value else "false"
