"""The router's HTTP application."""

import logging
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from .. import __version__
from .access import DOCS_FILES, Access
from .admin_routes import admin_routes
from .answer_schema import TEXT, answers
from .auth import AuthMiddleware
from .cors import ANY_SITE, Cors, add_cors
from .errors import ApiError, error_response
from .exchange import ExchangeMiddleware, Observer
from .job import Core
from .key_metrics import KeyMetricsPage
from .kobold import kobold_routes
from .kobold_lite import lite_routes
from .kobold_running import RunningGenerations
from .messages import messages_routes
from .ollama import ollama_routes
from .openai_routes import openai_routes
from .openapi_page import complete_page
from .page import DEFAULT_PREFIX, Page
from .pooling_routes import pooling_routes
from .request_id import HEADER, request_id_of
from .request_log import RequestLog, UsageCount
from .request_usage import RequestUsage, RequestUsagePage
from .responses import responses_routes
from .samplers_route import samplers_routes
from .served import Served
from .service_schemas import Alive, Ready, Version
from .status_routes import status_routes
from .token_routes import token_routes
from .ui_routes import home_routes, ui_routes

log = logging.getLogger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CLIENT_CLOSED_REQUEST = 499


def create_app(
    core: Core,
    served: Served,
    access: Access | None = None,
    cors: Cors = ANY_SITE,
    *,
    metrics_prefix: str = DEFAULT_PREFIX,
    observers: Sequence[Observer] = (),
) -> FastAPI:
    """OpenAI's routes below /v1, Kobold's below /api, health, version and metrics, and the pages. Without `access` all
    but the admin's routes are open. `observers` are told of every request, before those of metrics and log."""
    access = access or Access()
    usage = RequestUsage()
    access.open_pages(served.kobold_lite or ())
    app = FastAPIOffline(
        title="Isthmus",
        version=__version__,
        description="LLM serving, OpenAI and KoboldAI APIs",
        default_response_class=Response,  # promises no media type: routes say theirs
        static_url=DOCS_FILES,
    )
    running = RunningGenerations()
    app.include_router(openai_routes(core, served, running))
    app.include_router(pooling_routes(core, served))
    app.include_router(responses_routes(core, served))
    app.include_router(messages_routes(core, served))
    app.include_router(token_routes(served))
    app.include_router(kobold_routes(core, served, running, protected=access.needs_key))
    app.include_router(ollama_routes(core, served))
    app.include_router(samplers_routes())
    app.include_router(admin_routes(core, access))
    app.include_router(status_routes(core))
    pages = (
        RequestUsagePage(usage, model=served.name, prefix=metrics_prefix),
        KeyMetricsPage(access, prefix=metrics_prefix),
    )
    add_service_routes(app, core, pages)
    app.include_router(ui_routes())
    app.include_router(lite_routes(served.kobold_lite) if served.kobold_lite else home_routes())
    app.add_middleware(AuthMiddleware, access=access)
    add_cors(app, cors)  # around the keys: a page is told why it was refused, and asks first without one
    app.add_middleware(ExchangeMiddleware, observers=(*observers, UsageCount(usage), RequestLog()))
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(Exception, on_bug)
    complete_page(app, access)
    return app


def add_service_routes(app: FastAPI, core: Core, pages: Sequence[Page]) -> None:
    """`pages`: of metrics, besides the core's."""

    @app.head("/health", include_in_schema=False)  # which balancers ask
    @app.get("/health", tags=["service"], responses=answers(Ready, 503))
    async def health() -> Response:
        """200 once a worker is ready that can serve requests, 503 before."""
        if not core.ready:
            raise ApiError(503, "no worker is ready", retry_after_s=1)
        return JSONResponse({"status": "ready"})

    @app.head("/ping", include_in_schema=False)
    @app.get("/ping", tags=["service"], responses=answers(Alive))
    async def ping() -> Response:
        """200 while the router runs, with or without workers."""
        return JSONResponse({"status": "alive"})

    @app.get("/version", tags=["service"], responses=answers(Version))
    async def version() -> Response:
        """Of the server."""
        return JSONResponse({"version": __version__})

    @app.get("/metrics", tags=["service"], responses=answers({"type": "string"}, media_type=TEXT))
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(core.metrics() + b"".join([page.render() for page in pages]), media_type=METRICS_TYPE)


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    log.info("%s: %d %r", request_id_of(request.scope), error.status, error.message)
    return error_response(request.url.path, error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    response = error_response(request.url.path, ApiError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response


async def on_disconnect(request: Request, error: Exception) -> Response:
    """The client left before its body was read: nobody hears the answer."""
    log.info("%s: disconnected while sending its body", request_id_of(request.scope))
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def on_bug(request: Request, error: Exception) -> Response:
    log.error("%s: internal error", request_id_of(request.scope), exc_info=error)
    response = error_response(request.url.path, ApiError(500, "internal error"))
    response.headers[HEADER] = request_id_of(request.scope)  # this answer passes outside the middleware
    return response
