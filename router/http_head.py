"""HTTP connections whose heads, request line and headers, must come in time and are limited in size.

uvicorn limits how long a connection is idle between requests, but not how long a head takes: a client that sends part
of one, or nothing, would hold a connection for ever. Answers are left alone, however long they take: time is counted
only while there is none to write. TLS handshakes have the event loop's own limit, a minute.
"""

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .bodies import BODY_TIMEOUT_S
from .errors import ApiError, error_response

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeadLimits:
    timeout_s: float = 30.0
    """From the connection's opening, or from a later head's first byte, to the head's end: past it 408, or where
    nothing came the connection is closed."""
    max_bytes: int = 64 << 10
    """Larger heads get a 431."""


HEAD_LIMITS = HeadLimits()


def limited_protocol(limits: HeadLimits) -> type[asyncio.Protocol]:
    """For uvicorn."""
    return type("LimitedProtocol", (HeadLimitedProtocol,), {"limits": limits})


class HeadLimitedProtocol(HttpToolsProtocol):
    limits: ClassVar[HeadLimits]

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self._in_head = True
        """Of a request, or before it."""
        self._num_bytes = 0
        """Of the head that has begun."""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while data and self._in_head and not self.transport.is_closing():
            room = self.limits.max_bytes - self._num_bytes
            if room == 0:
                self._refuse(ApiError(431, f"the request's headers are larger than {self.limits.max_bytes} bytes"))
                return
            piece, data = data[:room], data[room:]
            self._num_bytes += len(piece)
            super().data_received(piece)
        if data and not self.transport.is_closing():
            super().data_received(data)
        if self._timer is None and not self._is_answering:
            self._start_timer()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_head, self._num_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()

    @property
    def _is_answering(self) -> bool:
        """Pipelined requests are answered in order: the newest is the last."""
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        """The rest of a body that came after its answer, as after a 413, has a body's time."""
        timeout_s = self.limits.timeout_s if self._in_head else BODY_TIMEOUT_S
        self._timer = self.loop.call_later(timeout_s, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        if self._in_head and self._num_bytes:
            self._refuse(ApiError(408, f"the request's headers did not come within {self.limits.timeout_s:g} s"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answers without the application, and closes; in the midst of another answer it only closes."""
        log.info("%s: %d %r", self.client, error.status, error.message)
        if not self._is_answering:
            self.transport.write(_whole_answer(getattr(self, "url", b""), error))
        self.transport.close()


def _whole_answer(url: bytes, error: ApiError) -> bytes:
    answer = error_response(url.split(b"?")[0].decode("latin-1"), error)
    lines = [b"HTTP/1.1 %d %b" % (error.status, HTTPStatus(error.status).phrase.encode())]
    lines += [b"%b: %b" % header for header in answer.raw_headers]
    return b"\r\n".join([*lines, b"connection: close", b"", bytes(answer.body)])
