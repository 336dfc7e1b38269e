"""POST /v1/completions."""

from typing import Any

import msgspec

from .completion_request import CompletionRequest
from .errors import ApiError
from .openai_events import DONE, ChunkTemplate, error_event
from .openai_request import usage_of
from .served import Served
from .text_stream import ChoiceText, Generation, TextStream


class CompletionRenderer:
    """Writes a generation as text completions."""

    def __init__(self, request: CompletionRequest, generation: Generation, served: Served, now: int):
        """`now`: Unix time, seconds."""
        self._generation = generation
        self._include_usage = request.include_usage
        self._head: dict[str, Any] = {
            "id": f"cmpl-{generation.jobs[0].request_id}",
            "object": "text_completion",
            "created": now,
            "model": request.model or served.name,
            "system_fingerprint": served.system_fingerprint,
        }
        self._chunks = ChunkTemplate(self._head, b'"text":', b"", usage_null=self._include_usage)
        self.event = self._chunks.piece

    def opening(self) -> bytes:
        """The prompts, where echo is asked for."""
        if not self._generation.echoes:
            return b""
        echo, text = self._generation.echo, self._chunks.text
        return b"".join([text(index, echo(index)) for index in range(self._generation.num_choices)])

    def closing(self, text: TextStream) -> bytes:
        return (self._chunks.usage(usage_of(text)) if self._include_usage else b"") + DONE

    def error(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, text: TextStream) -> bytes:
        choices = [self._choice(choice) for choice in text.choices]
        return msgspec.json.encode({**self._head, "choices": choices, "usage": usage_of(text)})

    def _choice(self, choice: ChoiceText) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": self._generation.echo(choice.index) + "".join(choice.parts),
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
