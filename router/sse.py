"""Answers that run a generation: as server-sent events, or whole.

They run inside the ASGI call, where a disconnect is seen at once, streaming or not. Nothing is sent before the first
token exists, so an error until then has its own HTTP status; after it, an error is an event.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .accounts import count_tokens
from .errors import ApiError, from_job_error
from .exchange import exchange_of
from .job import JobError
from .request_id import request_id_of
from .text_stream import Piece, TextStream

log = logging.getLogger(__name__)

Headers = Sequence[tuple[bytes, bytes]]
EVENT_HEADERS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Renderer(Protocol):
    """One API's way of writing a generation down."""

    def opening(self, text: TextStream) -> bytes:
        """Events before the first text."""

    @property
    def event(self) -> Callable[[Piece], bytes]:
        """Writes one piece; called for each token, so it is looked up once a generation."""

    def closing(self, text: TextStream) -> bytes:
        """Events after the last text."""

    def error(self, error: ApiError) -> bytes:
        """The last event of a generation that failed after it had begun."""

    def whole(self, text: TextStream) -> bytes:
        """The body of an answer that is not streamed."""


class GenerationResponse(Response):
    """Runs a generation and sends what `renderer` makes of it. Raises ApiError before anything has been sent."""

    def __init__(
        self,
        start: Callable[[], TextStream],
        renderer: Renderer,
        *,
        stream: bool,
        during: Callable[[TextStream], AbstractContextManager[object]] = nullcontext,
        headers: Headers = EVENT_HEADERS,
    ):
        """`start` submits the generation; it may raise JobError. `during` is entered while that runs. `headers` are
        a stream's."""
        super().__init__()
        self._failed = False
        self._during = during
        self._stream_headers = headers
        self._start = start
        self._renderer = renderer
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            text = self._start()
        except JobError as error:
            raise from_job_error(error) from error
        exchange = exchange_of(scope)
        exchange.generating(text, stream=self._stream)
        watcher = asyncio.ensure_future(until_disconnect(receive))
        watcher.add_done_callback(lambda _: text.cancel())
        try:
            with self._during(text):
                if self._stream:
                    # A task of its own wakes at each token without resuming all the layers above this call.
                    await asyncio.create_task(self._send_events(scope, send, text, watcher))
                else:
                    await self._send_whole(scope, receive, send, text, watcher)
        finally:
            exchange.outcome = self._outcome(text, disconnected=watcher.done())
            watcher.cancel()
            text.cancel()
            count_tokens(scope, text.generation.num_prompt_tokens, text.num_output_tokens)

    def _outcome(self, text: TextStream, *, disconnected: bool) -> str:
        reasons = [choice.finish_reason for choice in text.choices if choice.finish_reason]
        if len(reasons) == len(text.choices):
            return ",".join(reasons)
        return "error" if self._failed else "disconnected" if disconnected else "aborted"

    def _failure(self, error: JobError) -> ApiError:
        self._failed = True
        return from_job_error(error)

    async def _send_whole(
        self, scope: Scope, receive: Receive, send: Send, text: TextStream, watcher: "asyncio.Future[None]"
    ) -> None:
        try:
            while await text.next() is not None:
                pass
        except JobError as error:
            raise self._failure(error) from error
        if not watcher.done():
            await Response(self._renderer.whole(text), media_type="application/json")(scope, receive, send)

    async def _send_events(self, scope: Scope, send: Send, text: TextStream, watcher: "asyncio.Future[None]") -> None:
        try:
            pieces = await text.next()
        except JobError as error:
            raise self._failure(error) from error
        if watcher.done():
            return
        await send({"type": "http.response.start", "status": 200, "headers": list(self._stream_headers)})
        event = self._renderer.event
        body = self._renderer.opening(text)
        try:
            while pieces is not None and not watcher.done():
                body += b"".join([event(piece) for piece in pieces])
                if body:
                    await send(body_message(body))
                body = b""
                pieces = await text.next()
            if watcher.done():
                return
            body = self._renderer.closing(text)
        except JobError as error:
            body = self._renderer.error(self._failure(error))
        except Exception:
            # The edge of the stream's loop: the client must not take a cut text for a whole one.
            self._failed = True
            log.exception("%s: stream failed", request_id_of(scope))
            body = self._renderer.error(ApiError(500, "internal error"))
        if not watcher.done():
            await send(body_message(body, more=False))


def body_message(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
