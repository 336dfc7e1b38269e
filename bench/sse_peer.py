"""The peer: a bare Starlette app that streams chunks made beforehand, under the same HTTP server as the router.

What the router adds (validation, queue, placement, ZeroMQ, detokenizing, JSON) it has none of, so it is also the
ceiling. `python -m isthmus.bench.sse_peer` serves on a free port, which it tells its supervisor, until told to end.
"""

import asyncio
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ..launch.child import Lifeline
from ..router.openai_events import DONE, ChunkTemplate
from ..router.text_stream import Piece

HEAD = {
    "id": "cmpl-0123456789abcdef0123456789abcdef",
    "object": "text_completion",
    "created": 1_700_000_000,
    "model": "bench",
    "system_fingerprint": "isthmus-0.1.0",
}


def make_app() -> Starlette:
    """POST /paced?tokens=N&step_s=S: a chunk each S seconds; for 0, one each turn of the event loop, as a step's tokens
    come. POST /at_once?tokens=N: all without a pause, so that many share one write. GET /ping."""
    template = ChunkTemplate(HEAD, b'"text":', b"", usage_null=False)
    chunk, last = template.text(0, " token"), template.piece(Piece(0, " token", "length"))

    async def paced(request: Request) -> Response:
        await request.body()
        query = request.query_params
        return events(one_each(chunk, last, int(query["tokens"]), float(query["step_s"])))

    async def at_once(request: Request) -> Response:
        await request.body()
        return events(without_pause(chunk, last, int(request.query_params["tokens"])))

    async def ping(request: Request) -> Response:
        return PlainTextResponse("alive")

    routes = [Route("/paced", paced, methods=["POST"]), Route("/at_once", at_once, methods=["POST"])]
    return Starlette(routes=[*routes, Route("/ping", ping)])


def events(chunks: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(chunks, media_type="text/event-stream")


async def one_each(chunk: bytes, last: bytes, num_tokens: int, step_s: float) -> AsyncIterator[bytes]:
    for _ in range(num_tokens - 1):
        yield chunk
        await asyncio.sleep(step_s)
    yield last
    yield DONE


async def without_pause(chunk: bytes, last: bytes, num_tokens: int) -> AsyncIterator[bytes]:
    for _ in range(num_tokens - 1):
        yield chunk
    yield last
    yield DONE


class PeerServer(uvicorn.Server):
    """Says when it listens, and where."""

    def __init__(self, config: uvicorn.Config, lifeline: Lifeline):
        super().__init__(config)
        self._lifeline = lifeline

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._lifeline.ready(port=self.servers[0].sockets[0].getsockname()[1])


def main() -> None:
    lifeline = Lifeline.from_environment()
    config = uvicorn.Config(
        make_app(),
        host="127.0.0.1",
        port=0,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
    PeerServer(config, lifeline).run()


if __name__ == "__main__":
    main()
