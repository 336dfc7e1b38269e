"""POST /v1/chat/completions."""

from typing import Any

import msgspec

from .chat_request import ChatRequest
from .errors import ApiError
from .logprobs_json import chat_logprobs
from .openai_events import DONE, ChunkTemplate, error_event
from .openai_prompts import prompt_logprobs_of
from .openai_request import usage_of
from .served import Served
from .text_stream import ChoiceText, Generation, Piece, TextStream


class ChatRenderer:
    """Writes a generation as an assistant's messages."""

    def __init__(self, request: ChatRequest, generation: Generation, served: Served, now: int):
        """`now`: Unix time, seconds."""
        self._num_choices = generation.num_choices
        self._include_usage = request.include_usage
        self._tokenizer = served.tokenizer
        self._shows_logprobs = request.logprobs
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{generation.jobs[0].request_id}",
            "object": "chat.completion",
            "created": now,
            "model": request.model or served.name,
            "system_fingerprint": served.system_fingerprint,
        }
        head = {**self._head, "object": "chat.completion.chunk"}
        self._chunks = ChunkTemplate(
            head,
            b'"delta":{"content":',
            b"}",
            usage_null=self._include_usage,
            logprobs=self._logprobs if self._shows_logprobs else None,
        )
        self.event = self._chunks.piece
        self._roles = ChunkTemplate(
            head, b'"delta":{"role":"assistant","content":', b"}", usage_null=self._include_usage
        )

    def opening(self, text: TextStream) -> bytes:
        return b"".join([self._roles.text(index, "") for index in range(self._num_choices)])

    def closing(self, text: TextStream) -> bytes:
        return (self._chunks.usage(usage_of(text)) if self._include_usage else b"") + DONE

    def error(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, text: TextStream) -> bytes:
        choices = [self._choice(choice) for choice in text.choices]
        prompt = prompt_logprobs_of(text, 0, self._tokenizer)
        return msgspec.json.encode({**self._head, "choices": choices, "usage": usage_of(text), **prompt})

    def _logprobs(self, of: Piece | ChoiceText) -> dict[str, Any]:
        return chat_logprobs(of.logprobs, self._tokenizer)

    def _choice(self, choice: ChoiceText) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": "".join(choice.parts), "refusal": None},
            "logprobs": self._logprobs(choice) if self._shows_logprobs else None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
