"""Routes between text and tokens, in the shapes of vLLM's."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from msgspec import Meta, Struct
from starlette.responses import JSONResponse, Response

from ..wire.sampling import TokenId
from .answer_schema import answers
from .bodies import read_body, understand
from .chat_messages import Message, check_messages
from .chat_request import ChatRequest, encode_chat, render_chat
from .errors import bad_field
from .fields import convert, decode_json
from .limits import check_model
from .request_schema import struct_schema
from .served import Served
from .token_schemas import DetokenizedText, Tokenized
from .tool_fields import Tools, tool_use

MAX_IDS = 1 << 20
TokenIds = Annotated[list[TokenId], Meta(max_length=MAX_IDS)]
OF_CHATS = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools")


class TokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    model: str | None = None
    """One of those that /v1/models lists; may be left out."""
    prompt: str | None = None
    """The text."""
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    """A conversation, instead of `prompt`."""
    add_special_tokens: bool | None = None
    """Begin as the model expects any text to begin (BOS): by default true for `prompt`, and false for `messages`,
    where the template does."""
    return_token_strs: bool = False
    """Also the tokens as the vocabulary spells them."""
    add_generation_prompt: bool | None = None
    """End the conversation where the assistant's answer begins; true by default."""
    continue_final_message: bool | None = None
    """Leave its last message open, to be continued."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the chat template."""
    tools: Tools | None = None
    """Functions that the model is told of."""


class DetokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    tokens: TokenIds
    """Their ids."""
    model: str | None = None
    """One of those that /v1/models lists; may be left out."""


def token_routes(served: Served) -> APIRouter:
    """Each also without /v1, as vLLM has them."""
    routes = APIRouter(tags=["OpenAI"])

    async def tokenize(request: Request) -> Response:
        """The tokens of a text or a conversation."""
        raw = await read_body(request, served.max_body_bytes)
        return JSONResponse(await understand(raw, lambda body: tokenized(body, served)))

    async def detokenize(request: Request) -> Response:
        """The text of tokens, special ones included."""
        raw = await read_body(request, served.max_body_bytes)
        return JSONResponse({"prompt": await understand(raw, lambda body: detokenized(body, served))})

    for folder in ("", "/v1"):
        for path, handler, body, answer in (
            ("tokenize", tokenize, TokenizeRequest, Tokenized),
            ("detokenize", detokenize, DetokenizeRequest, DetokenizedText),
        ):
            told: dict[str, Any] = {"openapi_extra": struct_schema(body), "responses": answers(answer, 404)}
            routes.add_api_route(f"{folder}/{path}", handler, methods=["POST"], **told)
    return routes


def tokenized(raw: bytes, served: Served) -> dict[str, Any]:
    """Raises ApiError."""
    body = decode_json(raw)
    check_messages(body.get("messages"))
    asked = convert(body, TokenizeRequest)
    check_model(asked.model, served)
    ids = ids_of(asked, served)
    strings = [served.tokenizer.spelling(token_id) for token_id in ids] if asked.return_token_strs else None
    return {"count": len(ids), "max_model_len": served.max_model_len, "tokens": ids, "token_strs": strings}


def ids_of(asked: TokenizeRequest, served: Served) -> list[int]:
    """Raises ApiError."""
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_field("prompt", "give either prompt or messages")
    of_chats = {name: value for name in OF_CHATS if (value := getattr(asked, name)) is not None}
    if asked.messages is not None:
        chat = ChatRequest(messages=asked.messages, add_special_tokens=bool(asked.add_special_tokens), **of_chats)
        return chat_ids(chat, served)
    if of_chats:
        raise bad_field(next(iter(of_chats)), "only with messages")
    assert asked.prompt is not None
    return served.tokenizer.encode(asked.prompt, add_special_tokens=asked.add_special_tokens is not False)


def chat_ids(chat: ChatRequest, served: Served) -> list[int]:
    """Of a conversation, as a chat's prompt would have them. Raises ApiError."""
    use = tool_use(chat.tools, chat.tool_choice, parallel=chat.parallel_tool_calls)
    return encode_chat(render_chat(chat, use, served), chat, served)


def detokenized(raw: bytes, served: Served) -> str:
    """Raises ApiError."""
    asked = convert(decode_json(raw), DetokenizeRequest)
    check_model(asked.model, served)
    return decode_ids(asked.tokens, "tokens", served, skip_special_tokens=False)


def decode_ids(ids: list[int], param: str, served: Served, *, skip_special_tokens: bool) -> str:
    """Raises ApiError naming the field, `param`, that holds what is no token."""
    invalid = served.tokenizer.invalid_id(ids)
    if invalid is not None:
        raise bad_field(param, f"the model has no token {invalid}")
    return served.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
