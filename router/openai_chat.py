"""POST /v1/chat/completions."""

from functools import partial
from typing import Any

import msgspec

from .answer import AnswerForm, AnswerReader
from .chat_answer import delta_json, message_json
from .chat_request import ChatRequest
from .errors import ApiError
from .logprobs_json import chat_logprobs
from .openai_events import ABORTED, DONE, ChunkTemplate, ends_of_aborted, error_event
from .openai_prompts import prompt_logprobs_of
from .openai_request import usage_of
from .served import Served
from .text_stream import ChoiceText, Generation, Piece, TextStream


class ChatRenderer:
    """Writes a generation as an assistant's messages."""

    def __init__(self, request: ChatRequest, generation: Generation, form: AnswerForm, served: Served, now: int):
        """`form`: what is to be read out of the text. `now`: Unix time, seconds."""
        self._form = form
        self._in_older_form = request.in_older_form
        self._num_choices = generation.num_choices
        self._include_usage = request.include_usage
        self._continuous_usage = request.continuous_usage
        self._tokenizer = served.tokenizer
        self._as_ids = request.return_tokens_as_token_ids
        self._shows_logprobs = request.logprobs
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{generation.jobs[0].request_id}",
            "object": "chat.completion",
            "created": now,
            "model": request.model or served.name,
            "system_fingerprint": served.system_fingerprint,
        }
        head = {**self._head, "object": "chat.completion.chunk"}
        self._ids = {"prompt_token_ids": generation.jobs[0].prompt_ids} if request.return_token_ids else {}
        self._chunks = ChunkTemplate(
            head,
            b'"delta":{"content":',
            b"}",
            usage_null=self._include_usage,
            logprobs=self._logprobs if self._shows_logprobs else None,
            with_ids=request.return_token_ids,
        )
        self._deltas = ChunkTemplate(
            head,
            b'"delta":',
            b"",
            usage_null=self._include_usage,
            logprobs=self._logprobs if self._shows_logprobs else None,
            with_ids=request.return_token_ids,
        )
        self._readers = [AnswerReader(form) for _ in range(self._num_choices)]
        self.event = self._chunks.piece if form.is_plain else self._read
        self._roles = ChunkTemplate(
            {**head, **self._ids}, b'"delta":{"role":"assistant","content":', b"}", usage_null=self._include_usage
        )

    def opening(self, text: TextStream) -> bytes:
        if self._continuous_usage:
            for chunks in (self._chunks, self._deltas, self._roles):
                chunks.tell_usage(partial(usage_of, text))
        return b"".join([self._roles.text(index, "") for index in range(self._num_choices)])

    def closing(self, text: TextStream) -> bytes:
        ends = b"".join([self.event(piece) for piece in ends_of_aborted(text)])
        return ends + (self._chunks.usage(usage_of(text)) if self._include_usage else b"") + DONE

    def error(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, text: TextStream) -> bytes:
        choices = [self._choice(choice) for choice in text.choices]
        prompt = prompt_logprobs_of(text, 0, self._tokenizer)
        told = {"choices": choices, "usage": usage_of(text), **prompt, **self._ids}
        return msgspec.json.encode({**self._head, **told})

    def _read(self, piece: Piece) -> bytes:
        """The event for a piece; nothing while it may belong to a marker."""
        reader = self._readers[piece.index]
        ended = piece.finish_reason is not None
        part = reader.last(piece.text) if ended else reader.push(piece.text)
        if not part and not ended and not piece.logprobs and not piece.token_ids:
            return b""
        delta = delta_json(part, in_older_form=self._in_older_form)
        return self._deltas.made_of(piece, delta, self._finish_reason(reader, piece.finish_reason))

    def _finish_reason(self, reader: AnswerReader, reason: str | None) -> str | None:
        reason = reader.finish_reason(reason)
        return "function_call" if reason == "tool_calls" and self._in_older_form else reason

    def _logprobs(self, of: Piece | ChoiceText) -> dict[str, Any]:
        return chat_logprobs(of.logprobs, self._tokenizer, as_ids=self._as_ids)

    def _choice(self, choice: ChoiceText) -> dict[str, Any]:
        reader = AnswerReader(self._form)
        message = message_json(reader.last("".join(choice.parts)), in_older_form=self._in_older_form)
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice) if self._shows_logprobs else None,
            "finish_reason": self._finish_reason(reader, choice.finish_reason or ABORTED),
            "stop_reason": choice.stop_reason,
            **({"token_ids": choice.token_ids} if self._ids else {}),
        }
