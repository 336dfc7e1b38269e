"""Anthropic's messages: blocks that are made one after another, and the events that tell of them."""

from collections.abc import Iterator
from typing import Any

from ..wire.json_text import loads
from .answer import AnswerPart, CallPart

Fields = dict[str, Any]
EMPTY: dict[str, Fields] = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}
DELTAS = {"text": "text_delta", "thinking": "thinking_delta"}


class MessageOutput:
    """Takes an answer's parts in and gives events out. A thought, text and each use of a tool are blocks."""

    def __init__(self) -> None:
        self._blocks: list[Fields] = []
        self._inputs: dict[int, str] = {}
        """JSON texts of the inputs of tools, by block."""
        self._is_open = False

    def push(self, part: AnswerPart) -> Iterator[Fields]:
        if part.reasoning:
            yield from self._text("thinking", part.reasoning)
        for piece in part.said:
            yield from self._text("text", piece) if isinstance(piece, str) else self._use(piece)

    def close(self) -> Iterator[Fields]:
        if self._is_open:
            self._is_open = False
            yield {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def blocks(self) -> list[Fields]:
        """All that came."""
        return [{**block, **self._input(index)} for index, block in enumerate(self._blocks)]

    def _input(self, index: int) -> Fields:
        return {"input": input_object(self._inputs[index])} if index in self._inputs else {}

    def _text(self, kind: str, text: str) -> Iterator[Fields]:
        if not self._is_open or self._blocks[-1]["type"] != kind:
            yield from self._open({"type": kind, **EMPTY[kind]})
        self._blocks[-1][kind] += text
        yield self._delta({"type": DELTAS[kind], kind: text})

    def _use(self, call: CallPart) -> Iterator[Fields]:
        if call.id is not None:
            yield from self._open({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            self._inputs[len(self._blocks) - 1] = ""
        if call.arguments:
            self._inputs[len(self._blocks) - 1] += call.arguments
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _open(self, block: Fields) -> Iterator[Fields]:
        yield from self.close()
        self._blocks.append(block)
        self._is_open = True
        yield {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _delta(self, delta: Fields) -> Fields:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}


def input_object(text: str) -> Fields:
    """What is no JSON object, cut short by max_tokens for one, is given as text under a name of its own."""
    try:
        value = loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"invalid_json": text}
