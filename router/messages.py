"""Anthropic's POST /v1/messages, and its counting of tokens."""

from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from .answer import AnswerForm, AnswerReader
from .answer_schema import answers, generates
from .bodies import read_body, understand
from .errors import ApiError, anthropic_error
from .guidance_check import check_guidance
from .job import Core
from .logprob_fields import LOGPROBS
from .messages_output import MessageOutput
from .messages_request import MessagesRequest, parse_messages
from .messages_schemas import MessageAnswer, MessageEvent, TokenCount
from .named_events import events
from .request_id import request_id_of
from .request_schema import body_schema
from .served import Served
from .sse import GenerationResponse
from .text_stream import ChoiceText, Generation, Piece, TextStream


def messages_routes(core: Core, served: Served) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["Anthropic"])
    body = body_schema(MessagesRequest, {}, {}, required=["max_tokens"], untold=LOGPROBS)
    counted_body = body_schema(MessagesRequest, {}, {}, untold=LOGPROBS)

    @routes.post("/messages", openapi_extra=body, responses=generates(MessageAnswer, MessageEvent, 404))
    async def create(request: Request) -> Response:
        """The assistant's next message in a conversation, with its thoughts and uses of tools."""
        raw = await read_body(request, served.max_body_bytes)
        parse = partial(parse_messages, request_id=request_id_of(request.scope), served=served)
        asked, generation, form = await understand(raw, parse)
        await check_guidance(generation.jobs[0].params.guidance, generation.guided_by, served.grammars)
        renderer = MessageRenderer(asked, generation, form, served)
        start = partial(TextStream, core, generation, served.tokenizer)
        return GenerationResponse(start, renderer, stream=asked.stream)

    @routes.post("/messages/count_tokens", openapi_extra=counted_body, responses=answers(TokenCount, 404))
    async def count_tokens(request: Request) -> Response:
        """Tokens that the prompt of such a message would have."""
        raw = await read_body(request, served.max_body_bytes)
        parse = partial(parse_messages, request_id=request_id_of(request.scope), served=served, counted=True)
        _, generation, _ = await understand(raw, parse)
        return JSONResponse({"input_tokens": generation.num_prompt_tokens})

    return routes


class MessageRenderer:
    """Writes a generation as a message."""

    def __init__(self, request: MessagesRequest, generation: Generation, form: AnswerForm, served: Served):
        self._output = MessageOutput()
        self._reader = AnswerReader(form)
        [job] = generation.jobs
        self._fills_context = len(job.prompt_ids) + (job.params.max_tokens or 0) >= served.max_model_len
        self._head: dict[str, Any] = {
            "id": f"msg_{generation.jobs[0].request_id}",
            "type": "message",
            "role": "assistant",
            "model": request.model or served.name,
        }
        self.event = self._event

    def opening(self, text: TextStream) -> bytes:
        ending = {"stop_reason": None, "stop_sequence": None, "usage": {**prompt_usage(text), "output_tokens": 0}}
        return events([{"type": "message_start", "message": {**self._head, "content": [], **ending}}])

    def _event(self, piece: Piece) -> bytes:
        ended = piece.finish_reason is not None
        part = self._reader.last(piece.text) if ended else self._reader.push(piece.text)
        return events(self._output.push(part))

    def closing(self, text: TextStream) -> bytes:
        usage = {"output_tokens": text.num_output_tokens}
        delta = {"type": "message_delta", "delta": self._ending(text.choices[0]), "usage": usage}
        return events([*self._output.close(), delta, {"type": "message_stop"}])

    def error(self, error: ApiError) -> bytes:
        return events([anthropic_error(error)])

    def whole(self, text: TextStream) -> bytes:
        [choice] = text.choices
        for _ in self._output.push(self._reader.last("".join(choice.parts))):
            pass
        usage = {**prompt_usage(text), "output_tokens": text.num_output_tokens}
        content = self._output.blocks()
        return msgspec.json.encode({**self._head, "content": content, **self._ending(choice), "usage": usage})

    def _ending(self, choice: ChoiceText) -> dict[str, Any]:
        if isinstance(choice.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_reason}
        reason = self._reader.finish_reason(choice.finish_reason)
        if reason == "length" and self._fills_context:
            return {"stop_reason": "model_context_window_exceeded", "stop_sequence": None}
        return {"stop_reason": STOP_REASONS.get(reason or "", "end_turn"), "stop_sequence": None}


STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
"""Of an answer that did not come to its own end."""


def prompt_usage(text: TextStream) -> dict[str, int]:
    """What was found in a cache is counted apart."""
    num_cached = text.timings().num_cached_tokens
    return {"input_tokens": text.generation.num_prompt_tokens - num_cached, "cache_read_input_tokens": num_cached}
