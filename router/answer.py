"""What an assistant's text is made of: a thought, an answer, calls of tools. Read as it comes, for every API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from ..text.reasoning import ReasoningSplitter, Split, Thought
from ..text.tool_calls.formats import CallFormat
from ..text.tool_calls.parser import CallParser
from ..text.tool_calls.source import Arguments, CallBegin, Content, Event


class CallPart(Struct):
    """Of one call, what came together."""

    index: int
    id: str | None = None
    """With the first part, as the name is."""
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class AnswerPart:
    """What came together: a thought, then text and calls in the order in which they were said."""

    reasoning: str = ""
    said: list[str | CallPart] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.said)

    @property
    def content(self) -> str:
        return "".join(piece for piece in self.said if isinstance(piece, str))

    @property
    def calls(self) -> list[CallPart]:
        return [piece for piece in self.said if isinstance(piece, CallPart)]

    def add_text(self, text: str) -> None:
        if self.said and isinstance(self.said[-1], str):
            self.said[-1] += text
        elif text:
            self.said.append(text)

    def add_call(self, call: CallPart) -> None:
        """A copy of it, or its arguments to those of the same call."""
        last = self.said[-1] if self.said else None
        if call.id is None and isinstance(last, CallPart) and last.index == call.index:
            last.arguments += call.arguments
        else:
            self.said.append(CallPart(call.index, call.id, call.name, call.arguments))


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What has to be read out of the texts of a request."""

    thought: Thought | None = None
    call_format: CallFormat | None = None
    """None: nothing may be called."""
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the arguments of the functions there are, by their names."""
    shows_reasoning: bool = True

    @property
    def is_plain(self) -> bool:
        """The text is the answer."""
        return self.thought is None and self.call_format is None

    def shown_special(self, special: Mapping[str, int]) -> frozenset[int]:
        """Ids of the special tokens that readers look for. `special`: all of them by their text."""
        thought, calls = self.thought, self.call_format
        markers = [*(() if thought is None else (thought.style.open, thought.style.close))]
        markers += () if calls is None else calls.markers
        return frozenset(special[marker] for marker in markers if marker in special)


class AnswerReader:
    """Of one choice. However its text is cut, the parts joined are the same."""

    def __init__(self, form: AnswerForm):
        self.num_calls = 0
        self._form = form
        self._arguments: list[str] = []
        """Of the last call."""
        self._is_cut = False
        """Some other call is not whole."""
        self._thought = None if form.thought is None else ReasoningSplitter(form.thought)
        self._calls = None if form.call_format is None else CallParser(form.call_format.read, form.schemas)

    def push(self, text: str) -> AnswerPart:
        split = Split("", text) if self._thought is None else self._thought.push(text)
        return self._part(split, [Content(split.answer)] if self._calls is None else self._calls.push(split.answer))

    def flush(self) -> AnswerPart:
        """The rest, once no more can come."""
        split = Split("", "") if self._thought is None else self._thought.flush()
        if self._calls is None:
            return self._part(split, [Content(split.answer)])
        return self._part(split, [*self._calls.push(split.answer), *self._calls.flush()])

    def last(self, text: str) -> AnswerPart:
        """Of the last piece of text, and the rest."""
        return joined([self.push(text), self.flush()])

    def finish_reason(self, reason: str | None) -> str | None:
        """`reason`, but for an answer that ended by itself with calls, all of them whole: a stop string may cut one."""
        return "tool_calls" if reason == "stop" and self.num_calls and self._all_whole() else reason

    def _part(self, split: Split, events: Sequence[Event]) -> AnswerPart:
        part = AnswerPart(split.reasoning if self._form.shows_reasoning else "")
        for event in events:
            match event:
                case Content(text):
                    part.add_text(text)
                case CallBegin(name):
                    assert self._form.call_format is not None
                    part.add_call(CallPart(self.num_calls, self._form.call_format.make_id(), name))
                    self._is_cut = not self._all_whole()
                    self._arguments.clear()
                    self.num_calls += 1
                case Arguments(text):
                    part.add_call(CallPart(self.num_calls - 1, arguments=text))
                    self._arguments.append(text)
        return part

    def _all_whole(self) -> bool:
        return not self._is_cut and (not self.num_calls or is_json("".join(self._arguments)))


def is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def joined(parts: Sequence[AnswerPart]) -> AnswerPart:
    whole = AnswerPart("".join(part.reasoning for part in parts))
    for piece in (piece for part in parts for piece in part.said):
        if isinstance(piece, str):
            whole.add_text(piece)
        else:
            whole.add_call(piece)
    return whole
