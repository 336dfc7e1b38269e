"""The page at /ui: its files as they are in the folder `ui`, read once."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

FOLDER = Path(__file__).parent / "ui"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The page runs its own scripts alone, speaks to this server alone, and cannot be framed."""


def ui_routes() -> APIRouter:
    routes = APIRouter(prefix="/ui", include_in_schema=False)
    routes.add_api_route("", answer_file(FOLDER / "index.html"), methods=["GET"])
    for file in sorted(FOLDER.iterdir()):
        if file.suffix in MEDIA_TYPES:
            routes.add_api_route(f"/{file.name}", answer_file(file), methods=["GET"])
    return routes


def home_routes() -> APIRouter:
    """/ where nothing else is served there."""
    routes = APIRouter(include_in_schema=False)

    @routes.head("/")
    @routes.get("/")
    async def home() -> Response:
        return RedirectResponse("ui", 302)

    return routes


def answer_file(file: Path) -> Callable[[], Awaitable[Response]]:
    raw = file.read_bytes()

    async def answer() -> Response:
        return Response(raw, headers=HEADERS, media_type=MEDIA_TYPES[file.suffix])

    return answer
