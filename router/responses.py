"""POST /v1/responses, and its counting of tokens."""

import time
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from .answer import AnswerReader
from .answer_schema import answers, generates
from .bodies import read_body, understand
from .errors import ApiError, openai_error
from .guidance_check import check_guidance
from .job import Core
from .logprob_fields import LOGPROBS
from .named_events import events
from .request_id import request_id_of
from .request_schema import body_schema
from .responses_output import ResponseOutput
from .responses_request import ALIASES, ParsedResponse, ResponsesRequest, parse_response
from .responses_schemas import InputTokens, ResponseEvent, ResponseObject
from .served import Served
from .sse import GenerationResponse
from .text_stream import Piece, TextStream


def responses_routes(core: Core, served: Served) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])

    body = body_schema(ResponsesRequest, ALIASES, {}, untold=LOGPROBS)

    @routes.post("/responses", openapi_extra=body, responses=generates(ResponseObject, ResponseEvent, 404))
    async def respond(request: Request) -> Response:
        """The answer to a whole conversation: nothing is kept between requests."""
        raw = await read_body(request, served.max_body_bytes)
        parse = partial(parse_response, request_id=request_id_of(request.scope), served=served)
        parsed = await understand(raw, parse)
        generation = parsed.generation
        await check_guidance(generation.jobs[0].params.guidance, generation.guided_by, served.grammars)
        renderer = ResponseRenderer(parsed, served, int(time.time()))
        start = partial(TextStream, core, generation, served.tokenizer)
        return GenerationResponse(start, renderer, stream=parsed.request.stream)

    @routes.post("/responses/input_tokens", openapi_extra=body, responses=answers(InputTokens, 404))
    async def count_tokens(request: Request) -> Response:
        """Tokens that the prompt of such a response would have."""
        raw = await read_body(request, served.max_body_bytes)
        parse = partial(parse_response, request_id=request_id_of(request.scope), served=served, counted=True)
        generation = (await understand(raw, parse)).generation
        return JSONResponse({"object": "response.input_tokens", "input_tokens": generation.num_prompt_tokens})

    return routes


class ResponseRenderer:
    """Writes a generation as a response."""

    def __init__(self, parsed: ParsedResponse, served: Served, now: int):
        """`now`: Unix time, seconds."""
        request, job = parsed.request, parsed.generation.jobs[0]
        self._output = ResponseOutput(job.request_id)
        self._reader = AnswerReader(parsed.form)
        self._tokenizer = served.tokenizer
        self._head: dict[str, Any] = {
            "id": f"resp_{job.request_id}",
            "object": "response",
            "created_at": now,
            "model": request.model or served.name,
            "instructions": request.instructions,
            "tools": request.tools,
            "tool_choice": request.tool_choice,
            "parallel_tool_calls": request.parallel_tool_calls,
            "temperature": job.params.temperature,
            "top_p": job.params.top_p,
            "max_output_tokens": parsed.max_output_tokens,
            "previous_response_id": None,
            "text": {"format": request.text.format or {"type": "text"}},
            "truncation": request.truncation,
            "metadata": request.metadata,
            "store": False,
        }
        self.event = self._event

    def opening(self, text: TextStream) -> bytes:
        response = self._response("in_progress")
        kinds = ("response.created", "response.in_progress")
        return events([self._output.event(kind, response=response) for kind in kinds])

    def _event(self, piece: Piece) -> bytes:
        ended = piece.finish_reason is not None
        part = self._reader.last(piece.text) if ended else self._reader.push(piece.text)
        return events(self._output.push(part))

    def closing(self, text: TextStream) -> bytes:
        status = status_of(text)
        done = events(self._output.close(status))
        return done + events([self._output.event(f"response.{status}", response=self._finished(text))])

    def error(self, error: ApiError) -> bytes:
        told = openai_error(error)["error"]
        failed = {**self._response("failed"), "error": {"code": "server_error", "message": told["message"]}}
        return events([self._output.event("response.failed", response=failed)])

    def whole(self, text: TextStream) -> bytes:
        [choice] = text.choices
        for _ in self._output.push(self._reader.last("".join(choice.parts))):
            pass
        for _ in self._output.close(status_of(text)):
            pass
        return msgspec.json.encode(self._finished(text))

    def _finished(self, text: TextStream) -> dict[str, Any]:
        status = status_of(text)
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {**self._response(status), "incomplete_details": reason, "usage": self._usage(text)}

    def _response(self, status: str) -> dict[str, Any]:
        told = {"status": status, "output": self._output.items, "error": None, "incomplete_details": None}
        return {**self._head, **told, "usage": None}

    def _usage(self, text: TextStream) -> dict[str, Any]:
        num_prompt, num_output = text.generation.num_prompt_tokens, text.num_output_tokens
        thought = self._tokenizer.encode(self._output.reasoning, add_special_tokens=False)
        return {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": text.timings().num_cached_tokens},
            "output_tokens": num_output,
            "output_tokens_details": {"reasoning_tokens": len(thought)},
            "total_tokens": num_prompt + num_output,
        }


def status_of(text: TextStream) -> str:
    [choice] = text.choices
    return "incomplete" if choice.finish_reason == "length" else "completed"
