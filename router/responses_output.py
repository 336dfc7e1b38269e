"""The output of a response: items that are made one after another, and the events that tell of it."""

from collections.abc import Iterator
from typing import Any

from .answer import AnswerPart, CallPart

Fields = dict[str, Any]
KINDS: dict[str, tuple[str, Fields]] = {
    "message": ("msg", {"role": "assistant"}),
    "reasoning": ("rs", {"summary": []}),
    "function_call": ("fc", {}),
}
"""Of items: how their ids begin, and what else they say."""


class ResponseOutput:
    """Takes an answer's parts in and gives events out. A thought, text and each call are items of their own."""

    def __init__(self, response_id: str):
        self.items: list[Fields] = []
        """The last one may still be open."""
        self._id = response_id
        self._is_open = False
        self._num_events = 0

    def event(self, kind: str, **fields: Any) -> Fields:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}

    def push(self, part: AnswerPart) -> Iterator[Fields]:
        if part.reasoning:
            yield from self._text("reasoning", part.reasoning)
        for piece in part.said:
            yield from self._text("message", piece) if isinstance(piece, str) else self._call(piece)

    @property
    def reasoning(self) -> str:
        return "".join(item["content"][0]["text"] for item in self.items if item["type"] == "reasoning")

    def close(self, status: str) -> Iterator[Fields]:
        """Ends the open item. `status`: completed or incomplete."""
        if not self._is_open:
            return
        self._is_open = False
        item, at = self.items[-1], self._at()
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self.event("response.function_call_arguments.done", **at, **done)
        else:
            kind, extra = text_kind(item["type"])
            [content] = item["content"]
            yield self.event(f"response.{kind}.done", **at, content_index=0, text=content["text"], **extra)
            yield self.event("response.content_part.done", **at, content_index=0, part=content)
        item["status"] = status
        yield self.event("response.output_item.done", output_index=at["output_index"], item=item)

    def _at(self) -> Fields:
        """Where the last item is."""
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _text(self, type: str, text: str) -> Iterator[Fields]:
        kind, extra = text_kind(type)
        if not self._is_open or self.items[-1]["type"] != type:
            part: Fields = {"type": kind, "text": ""}
            part |= {"annotations": [], "logprobs": []} if type == "message" else {}
            yield from self._open(type, {"content": []})
            yield self.event("response.content_part.added", **self._at(), content_index=0, part=dict(part))
            self.items[-1]["content"].append(part)
        self.items[-1]["content"][0]["text"] += text
        yield self.event(f"response.{kind}.delta", **self._at(), content_index=0, delta=text, **extra)

    def _call(self, call: CallPart) -> Iterator[Fields]:
        if call.id is not None:
            yield from self._open("function_call", {"call_id": call.id, "name": call.name, "arguments": ""})
        if call.arguments:
            self.items[-1]["arguments"] += call.arguments
            yield self.event("response.function_call_arguments.delta", **self._at(), delta=call.arguments)

    def _open(self, type: str, fields: Fields) -> Iterator[Fields]:
        yield from self.close("completed")
        prefix, extra = KINDS[type]
        item: Fields = {"id": f"{prefix}_{self._id}_{len(self.items)}", "type": type, "status": "in_progress"}
        item |= {**extra, **fields}
        self.items.append(item)
        self._is_open = True
        yield self.event("response.output_item.added", output_index=len(self.items) - 1, item=copied(item))


def text_kind(type: str) -> tuple[str, Fields]:
    """The name of an item's text, and what its events say besides."""
    return ("output_text", {"logprobs": []}) if type == "message" else ("reasoning_text", {})


def copied(item: Fields) -> Fields:
    """As it is now: it will change."""
    return {name: list(value) if isinstance(value, list) else value for name, value in item.items()}
