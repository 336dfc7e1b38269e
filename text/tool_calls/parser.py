"""Calls of tools in an output that comes in pieces."""

from collections.abc import Callable, Mapping
from typing import Any

from .source import Event, Source, Steps

Read = Callable[[Source], Steps[None]]
"""One format: a reader of a whole output."""


class CallParser:
    """Content, calls and their arguments as they come; joined, they are the same however the output was cut.

    Never gives out half a marker. A call that cannot be read is content, its markers included.
    """

    def __init__(self, read: Read, schemas: Mapping[str, Mapping[str, Any]]):
        """`schemas`: of the arguments of the functions there are, by their names."""
        self._source = Source(schemas)
        self._steps = read(self._source)

    def push(self, text: str) -> list[Event]:
        self._source.add(text)
        return self._advance()

    def flush(self) -> list[Event]:
        """The rest, once no more can come."""
        self._source.ended = True
        events = self._advance()
        self._source.finish()
        return events + self._taken()

    def _advance(self) -> list[Event]:
        next(self._steps, None)
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._source.events = self._source.events, []
        return events
