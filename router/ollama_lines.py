"""Ollama's answers: an object a line, the last with counts and durations (ns)."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from .answer import AnswerForm, AnswerPart, AnswerReader, CallPart, joined
from .chat_messages import arguments_object
from .errors import ApiError, ollama_error
from .text_stream import Piece, TextStream

LINE_HEADERS = (
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
NS = 1_000_000_000


class OllamaRenderer:
    """Writes a generation as a `message` (of a chat) or a `response` (to a prompt). Calls come whole, with its end."""

    def __init__(self, model: str, form: AnswerForm, *, is_chat: bool):
        self._model = model
        self._is_chat = is_chat
        self._reader = AnswerReader(form)
        self._calls: list[AnswerPart] = []
        self.event = self._event

    def opening(self, text: TextStream) -> bytes:
        return b""

    def _event(self, piece: Piece) -> bytes:
        ended = piece.finish_reason is not None
        part = self._reader.last(piece.text) if ended else self._reader.push(piece.text)
        self._calls.append(AnswerPart(said=[*part.calls]))
        calls = self._whole_calls() if ended else []
        if not (part.content or part.reasoning or calls):
            return b""
        return line({**self._head(), **self._said(part, calls), "done": False})

    def closing(self, text: TextStream) -> bytes:
        return line({**self._head(), **self._said(AnswerPart(), []), **ending(text)})

    def error(self, error: ApiError) -> bytes:
        return line(ollama_error(error))

    def whole(self, text: TextStream) -> bytes:
        part = self._reader.last("".join(text.choices[0].parts))
        self._calls.append(AnswerPart(said=[*part.calls]))
        return msgspec.json.encode({**self._head(), **self._said(part, self._whole_calls()), **ending(text)})

    def _head(self) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return {"model": self._model, "created_at": now}

    def _said(self, part: AnswerPart, calls: list[dict[str, Any]]) -> dict[str, Any]:
        thought = {"thinking": part.reasoning} if part.reasoning else {}
        if not self._is_chat:
            return {"response": part.content, **thought}
        called = {"tool_calls": calls} if calls else {}
        return {"message": {"role": "assistant", "content": part.content, **thought, **called}}

    def _whole_calls(self) -> list[dict[str, Any]]:
        """Without one whose arguments were cut: there is no object to show."""
        return [shown for call in joined(self._calls).calls if (shown := call_json(call))]


def call_json(call: CallPart) -> dict[str, Any]:
    arguments = arguments_object(call.arguments)
    return {"function": {"name": call.name, "arguments": arguments}} if isinstance(arguments, dict) else {}


def ending(text: TextStream) -> dict[str, Any]:
    timings = text.timings()
    prompt_s = timings.prefill_s + timings.transfer_s
    return {
        "done": True,
        "done_reason": text.choices[0].finish_reason or "stop",
        "total_duration": int((timings.queue_s + prompt_s + timings.decode_s) * NS),
        "load_duration": 0,
        "prompt_eval_count": text.generation.num_prompt_tokens,
        "prompt_eval_duration": int(prompt_s * NS),
        "eval_count": text.num_output_tokens,
        "eval_duration": int(timings.decode_s * NS),
    }


def line(data: dict[str, Any]) -> bytes:
    return msgspec.json.encode(data) + b"\n"
