"""What a client is told when its request cannot be served, in OpenAI's shape on /v1, in Anthropic's on
/v1/messages, in Kobold's on /api, in Ollama's on its routes there."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response

from .job import JobError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
KOBOLD_TYPES = {
    401: "unauthorized",
    403: "forbidden",
    413: "bad_input",
    429: "rate_limit",
    503: "service_unavailable",
    504: "timeout",
}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""Anthropic's SDK sends whole conversations once it is told this."""

OLLAMA_PATHS = frozenset(("/api/generate", "/api/chat", "/api/show", "/api/tags", "/api/version"))

MAX_MESSAGE = 1000
MAX_PARAM = 100


class ApiError(Exception):
    """A request is answered with `status`; `param` names the field at fault, `code` is OpenAI's short word for it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message[:MAX_MESSAGE]  # it may quote what the client sent
        self.param = param and param[:MAX_PARAM]
        self.code = code
        self.retry_after_s = retry_after_s


def bad_field(param: str, message: str, *, code: str | None = None) -> ApiError:
    """A 400 for one field; its name leads the message, for clients that show nothing else."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def from_job_error(error: JobError) -> ApiError:
    return ApiError(error.status, error.message, retry_after_s=error.retry_after_s)


def openai_error(error: ApiError) -> dict[str, Any]:
    fallback = "invalid_request_error" if error.status < 500 else "server_error"
    kind = TYPES.get(error.status, fallback)
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def kobold_error(error: ApiError) -> dict[str, Any]:
    fallback = "bad_input" if error.status < 500 else "server_error"
    kind = KOBOLD_TYPES.get(error.status, fallback)
    detail = {"msg": error.message, "type": kind, "param": error.param}
    return {"detail": detail, "error": {"message": error.message}}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    kind = ANTHROPIC_TYPES.get(error.status, fallback)
    details = {"details": NO_THREADS} if error.param == "thread" else {}
    return {"type": "error", "error": {"type": kind, "message": error.message, **details}}


def ollama_error(error: ApiError) -> dict[str, Any]:
    return {"error": error.message}


ErrorWriter = Callable[[ApiError], dict[str, Any]]


def error_writer(path: str) -> ErrorWriter:
    """Makes the bodies of a route at `path`."""
    if path.startswith("/v1/messages"):
        return anthropic_error
    if path in OLLAMA_PATHS:
        return ollama_error
    return kobold_error if path.startswith("/api/") else openai_error


def error_response(path: str, error: ApiError) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    body = msgspec.json.encode(error_writer(path)(error))
    return Response(body, error.status, headers, media_type="application/json")
