"""What an assistant's text is made of: a thought, an answer, calls of tools. Read as it comes, for every API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    reasoning: str = ""
    content: str = ""
    calls: list[CallPart] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


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
        """`reason`, but for an answer that ended by itself with calls."""
        return "tool_calls" if reason == "stop" and self.num_calls else reason

    def _part(self, split: Split, events: Sequence[Event]) -> AnswerPart:
        part = AnswerPart(split.reasoning if self._form.shows_reasoning else "")
        for event in events:
            match event:
                case Content(text):
                    part.content += text
                case CallBegin(name):
                    assert self._form.call_format is not None
                    part.calls.append(CallPart(self.num_calls, self._form.call_format.make_id(), name))
                    self.num_calls += 1
                case Arguments(text):
                    add_arguments(part.calls, self.num_calls - 1, text)
        return part


def add_arguments(calls: list[CallPart], index: int, text: str) -> None:
    if not calls or calls[-1].index != index:
        calls.append(CallPart(index))
    calls[-1].arguments += text


def joined(parts: Sequence[AnswerPart]) -> AnswerPart:
    whole = AnswerPart("".join(p.reasoning for p in parts), "".join(p.content for p in parts))
    for call in (call for part in parts for call in part.calls):
        if call.id is not None:
            whole.calls.append(CallPart(call.index, call.id, call.name, call.arguments))
        else:
            add_arguments(whole.calls, call.index, call.arguments)
    return whole
