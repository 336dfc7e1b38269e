"""Kobold Lite's page at /, from the user's own copy: one HTML file, or the folder it was unpacked into."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, RedirectResponse, Response

INDEX_NAMES = ("index.html", "klite.html", "klite.embd")
MAX_FILES = 1000


def lite_files(path: Path) -> dict[str, Path]:
    """Files by the URL path they are served at. Raises ValueError, saying what is wrong, if there is no page."""
    if path.is_file():
        return {"/": path}
    if not path.is_dir():
        raise ValueError(f"{path} is not there: it should be Kobold Lite's index.html, or the folder it is in")
    index = next((path / name for name in INDEX_NAMES if (path / name).is_file()), None)
    if index is None:
        raise ValueError(f"{path} has no index.html")
    files = sorted(file for file in path.rglob("*") if file.is_file() and not is_hidden(file.relative_to(path)))
    if len(files) > MAX_FILES:
        raise ValueError(f"{path} has {len(files)} files, too many for Kobold Lite: give the folder of its index.html")
    return {"/": index, **{f"/{file.relative_to(path).as_posix()}": file for file in files}}


def is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def lite_routes(files: Mapping[str, Path]) -> APIRouter:
    """Routes of these files alone: no URL leads out of their folder."""
    routes = APIRouter(include_in_schema=False)
    for url, file in files.items():
        if "{" not in url:  # which would be a pattern
            answer = serve_page(file) if url == "/" else serve(file)
            routes.add_api_route(url, answer, methods=["GET", "HEAD"])
    return routes


def serve_page(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """Lite's page speaks to the server it came from if its address says `local`, else to the AI Horde."""
    page = serve(file)

    async def answer(request: Request) -> Response:
        if "local" in request.query_params:
            return await page()
        asked = f"&{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"?local=true{asked}", 307)

    return answer


def serve(file: Path) -> Callable[[], Awaitable[Response]]:
    media_type = "text/html" if file.suffix in (".html", ".embd") else None

    async def answer() -> Response:
        return FileResponse(file, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return answer
