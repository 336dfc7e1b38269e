"""POST /api/extra/json_to_grammar: a JSON schema as GBNF, as KoboldCpp has it."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import JSONResponse, Response

from ..text.json_gbnf import SchemaError, schema_to_gbnf
from .answer_schema import answers, refuses_with
from .bodies import read_body, understand
from .errors import ApiError, bad_field, kobold_error
from .fields import convert, decode_json
from .request_schema import struct_schema
from .served import Served


class GrammarRequest(Struct, frozen=True, forbid_unknown_fields=True):
    schema: dict[str, Any]
    """The JSON schema. What GBNF cannot say of it is refused."""


class GrammarMade(Struct):
    """The grammar."""

    result: str
    """In GBNF, for the field `grammar`."""
    success: Literal[True]
    """Always true: a refusal has another status, and false here."""


class NoGrammar(Struct):
    result: Literal[""]
    """Empty: none was made."""
    success: Literal[False]
    """All that clients look at."""


def kobold_grammar_routes(served: Served) -> APIRouter:
    routes = APIRouter(prefix="/api/extra")
    told = {**answers(GrammarMade), **refuses_with(NoGrammar)}

    @routes.post("/json_to_grammar", openapi_extra=struct_schema(GrammarRequest), responses=told)
    async def json_to_grammar(request: Request) -> Response:
        """A JSON schema as a grammar in GBNF. A refusal has `success` false, which is all that clients look at."""
        try:
            raw = await read_body(request, served.max_body_bytes)
            return JSONResponse({"result": await understand(raw, grammar_of), "success": True})
        except ApiError as error:
            return JSONResponse({"result": "", "success": False, **kobold_error(error)}, error.status)

    return routes


def grammar_of(raw: bytes) -> str:
    """Raises ApiError."""
    asked = convert(decode_json(raw), GrammarRequest)
    try:
        return schema_to_gbnf(asked.schema)
    except SchemaError as error:
        raise bad_field(f"schema.{error.at}".rstrip("."), str(error)) from error
