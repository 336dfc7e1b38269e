"""Kobold's answers: what KoboldCpp sends, to the byte where clients parse bytes."""

from typing import Any

import msgspec

from ..text.tokenizer import Tokenizer
from .errors import ApiError, kobold_error
from .logprobs_json import kobold_logprobs
from .text_stream import ChoiceText, Piece, TextStream

encode = msgspec.json.encode


def token_event(text: str, finish_reason: str | None) -> bytes:
    """Lite's pattern wants exactly these two lines and a blank one, and the JSON on one line."""
    reason = encode(finish_reason)
    return b'event: message\ndata: {"token": ' + encode(text) + b', "finish_reason": ' + reason + b"}\n\n"


def piece_event(piece: Piece) -> bytes:
    return token_event(piece.text, piece.finish_reason)


class KoboldRenderer:
    """Writes a generation as KoboldCpp does. An aborted one ends as one cut by its length."""

    event = staticmethod(piece_event)

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def opening(self, text: TextStream) -> bytes:
        return b""

    def closing(self, text: TextStream) -> bytes:
        return b"" if text.choices[0].finish_reason else token_event("", "length")

    def error(self, error: ApiError) -> bytes:
        event = {"token": "", "finish_reason": "error", "detail": kobold_error(error)["detail"]}
        return b"event: message\ndata: " + encode(event) + b"\n\n"

    def whole(self, text: TextStream) -> bytes:
        num_prompt_tokens = text.generation.num_prompt_tokens
        results = [kobold_result(choice, num_prompt_tokens, self._tokenizer) for choice in text.choices]
        return encode({"results": results})


def kobold_result(choice: ChoiceText, num_prompt_tokens: int, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "text": "".join(choice.parts),
        "tool_calls": [],
        "finish_reason": choice.finish_reason or "length",
        "logprobs": kobold_logprobs(choice.logprobs, tokenizer) if choice.logprobs else None,
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": choice.num_tokens,
    }
