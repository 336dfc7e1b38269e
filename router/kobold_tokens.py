"""Kobold's routes between text and tokens."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from msgspec import Meta, Struct
from starlette.responses import JSONResponse, Response

from .answer_schema import answers, refuses_with
from .bodies import read_body, understand
from .chat_request import ChatRequest, Message, render_chat
from .errors import ApiError, bad_field, kobold_error
from .fields import convert, decode_json
from .kobold_schemas import Detokenized, NothingCounted, TokensCounted
from .request_schema import struct_schema
from .served import Served
from .token_routes import TokenIds, decode_ids


class CountRequest(Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str | None = None
    """The text to count."""
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    """A conversation to count, instead of `prompt`."""
    special: bool = True
    """Count what the model expects before a prompt (BOS)."""


class DetokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    ids: TokenIds
    """The tokens."""
    special: bool = True
    """Show special tokens as text."""


def kobold_token_routes(served: Served) -> APIRouter:
    routes = APIRouter(prefix="/api/extra")
    counted = {**answers(TokensCounted), **refuses_with(NothingCounted)}

    @routes.post("/tokencount", openapi_extra=struct_schema(CountRequest), responses=counted)
    async def tokencount(request: Request) -> Response:
        """A text's tokens, or a conversation's. A refusal has the count -1, which is all that KoboldCpp says of one."""
        try:
            raw = await read_body(request, served.max_body_bytes)
            return JSONResponse(await understand(raw, lambda body: count_tokens(body, served)))
        except ApiError as error:
            return JSONResponse({"value": -1, **kobold_error(error)}, error.status)

    @routes.post("/detokenize", openapi_extra=struct_schema(DetokenizeRequest), responses=answers(Detokenized))
    async def detokenize(request: Request) -> Response:
        """The text of tokens."""
        raw = await read_body(request, served.max_body_bytes)
        text = await understand(raw, lambda body: text_of(body, served))
        return JSONResponse({"result": text, "success": True})

    return routes


def count_tokens(raw: bytes, served: Served) -> dict[str, Any]:
    """Raises ApiError."""
    asked = convert(decode_json(raw), CountRequest)
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_field("prompt", "give either prompt or messages")
    if asked.messages is not None:
        text = render_chat(ChatRequest(messages=asked.messages), None, served)
        ids = served.tokenizer.encode_chat(text)
    else:
        text = asked.prompt or ""
        ids = served.tokenizer.encode(text, add_special_tokens=asked.special)
    return {"value": len(ids), "ids": ids, "prompt": text}


def text_of(raw: bytes, served: Served) -> str:
    """Raises ApiError."""
    asked = convert(decode_json(raw), DetokenizeRequest)
    return decode_ids(asked.ids, "ids", served, skip_special_tokens=not asked.special)
