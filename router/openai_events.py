"""OpenAI's server-sent events. A token costs one JSON string between bytes that are made once a request."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..wire.messages import FinishReason
from .errors import ApiError, openai_error
from .text_stream import Piece, TextStream

RenderLogprobs = Callable[[Piece], Mapping[str, Any]]
encode = msgspec.json.encode
DONE = b"data: [DONE]\n\n"
ABORTED: FinishReason = "length"
"""What ended a choice that was aborted by its genkey, to clients: OpenAI has no word for it."""


def sse(data: Mapping[str, Any]) -> bytes:
    return b"data: " + encode(data) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    return sse(openai_error(error))


def ends_of_aborted(text: TextStream) -> list[Piece]:
    """Of the choices that have no end, once no more can come."""
    return [Piece(choice.index, "", ABORTED) for choice in text.choices if choice.finish_reason is None]


class ChunkTemplate:
    """The chunks of one request, which differ in choice, text and ending only."""

    def __init__(
        self,
        head: Mapping[str, Any],
        before_text: bytes,
        after_text: bytes,
        *,
        usage_null: bool,
        logprobs: RenderLogprobs | None = None,
        with_ids: bool = False,
    ):
        """`head`: the chunk's fields before `choices`. The text stands between `before_text` and `after_text` in its
        choice. `usage_null`: as OpenAI's chunks say it when a last one will carry the usage. `logprobs` writes those
        of the tokens whose text a chunk carries; None: nobody asked. `with_ids`: chunks tell their tokens."""
        self._head = b"data: " + encode(head)[:-1]
        self._tail = b',"usage":null}\n\n' if usage_null else b"}\n\n"
        self._before_text = b"," + before_text
        self._after_text = after_text
        self._unfinished = after_text + b',"logprobs":null,"finish_reason":null}]' + self._tail
        self._openings: dict[int, bytes] = {}
        self._logprobs = logprobs
        self._with_ids = with_ids
        self._is_bare = logprobs is None and not with_ids
        self._usage_so_far: Callable[[], Mapping[str, Any]] | None = None

    def tell_usage(self, usage_so_far: Callable[[], Mapping[str, Any]]) -> None:
        """In every chunk from now on, in place of null."""
        self._usage_so_far = usage_so_far
        self._is_bare = False

    def text(self, index: int, text: Any, more: Mapping[str, Any] | None = None) -> bytes:
        """`more` fields of the choice."""
        if not more and self._usage_so_far is None:
            return self._opening(index) + encode(text) + self._unfinished
        return self._ended(index, text, {"logprobs": None, "finish_reason": None, **(more or {})})

    def piece(self, piece: Piece) -> bytes:
        return self.made_of(piece, piece.text, piece.finish_reason)

    def made_of(self, piece: Piece, text: Any, finish_reason: str | None) -> bytes:
        """With `text`, anything JSON has, in the place of the piece's."""
        if finish_reason is None and self._is_bare:
            return self._opening(piece.index) + encode(text) + self._unfinished
        ending: dict[str, Any] = {"logprobs": self._logprobs and self._logprobs(piece)}
        ending["finish_reason"] = finish_reason
        if finish_reason is not None:
            ending["stop_reason"] = piece.stop_reason
        if self._with_ids:
            ending["token_ids"] = piece.token_ids
        return self._ended(piece.index, text, ending)

    def _opening(self, index: int) -> bytes:
        """All before the text of a choice."""
        opening = self._openings.get(index)
        if opening is None:
            opening = self._openings[index] = self._head + b',"choices":[{"index":%d' % index + self._before_text
        return opening

    def _ended(self, index: int, text: Any, fields: Mapping[str, Any]) -> bytes:
        ending = b"," + encode(fields)[1:] + b"]" + (self._tail if self._usage_so_far is None else self._usage_tail())
        return b"".join((self._opening(index), encode(text), self._after_text, ending))

    def _usage_tail(self) -> bytes:
        assert self._usage_so_far is not None
        return b',"usage":' + encode(self._usage_so_far()) + b"}\n\n"

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """The chunk without choices that carries the usage."""
        return self._head + b',"choices":[],"usage":' + encode(usage) + b"}\n\n"
