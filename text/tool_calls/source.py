"""An output as a reader of calls sees it: text that it walks through, and waits for where there is none yet.

Readers are generators that yield while what they need has not come. Nothing they decide depends on how the text was
cut: they look at more only by waiting for it.
"""

import re
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

from msgspec import Struct

from ..markers import find_first, num_unsure
from ..trimmer import Trimmer

T = TypeVar("T")
Steps = Generator[None, None, T]


class Content(Struct, frozen=True):
    text: str


class CallBegin(Struct, frozen=True):
    name: str


class Arguments(Struct, frozen=True):
    """A part of the JSON text of the last call's arguments."""

    text: str


Event = Content | CallBegin | Arguments


class Source:
    """What has come, how far it has been read, and what has been made of it."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]):
        """`schemas`: of the arguments of the functions there are, by their names."""
        self.schemas = schemas
        self.position = 0
        self.ended = False
        self.events: list[Event] = []
        self._text = ""
        self._content = Trimmer(left=False)
        self._after_call = False
        self._has_called = False

    def add(self, text: str) -> None:
        self._text += text

    def knows(self, name: str) -> bool:
        return name in self.schemas

    # Reading

    def peek(self) -> Steps[str]:
        """The next character; empty at the end."""
        while self.position == len(self._text) and not self.ended:
            yield
        return self._text[self.position : self.position + 1]

    def accept(self, literal: str) -> Steps[bool]:
        """Reads over `literal` if it comes next."""
        while True:
            here = self._text[self.position : self.position + len(literal)]
            if here == literal:
                self.position += len(literal)
                return True
            if self.ended or not literal.startswith(here):
                return False
            yield

    def close(self, marker: str) -> Steps[None]:
        """Reads over `marker` if it comes next, or over as much of it as came before the end."""
        if not (yield from self.accept(marker)) and marker.startswith(self._text[self.position :]):
            self.position = len(self._text)

    def read_run(self, pattern: re.Pattern[str], sink: Callable[[str], None]) -> Steps[None]:
        """All that `pattern`, a repeated set of characters, matches from here on."""
        while True:
            match = pattern.match(self._text, self.position)
            assert match is not None
            self.position = match.end()
            sink(match.group())
            if self.position < len(self._text) or self.ended:
                return
            yield

    def read_until(self, marker: str) -> Steps[str | None]:
        """The text before `marker`, which is read over; None if it never comes."""
        while True:
            end = self._text.find(marker, self.position)
            if end >= 0:
                text = self._text[self.position : end]
                self.position = end + len(marker)
                return text
            if self.ended:
                return None
            yield

    def skip_space(self) -> Steps[None]:
        yield from self.read_run(SPACE, ignore)

    def attempt(self, marker: str, read: Callable[["Source"], Steps[bool]]) -> Steps[bool]:
        """`read` after `marker`, which stands here. If it finds no call, the marker is content."""
        after = self.position + len(marker)
        self.position = after
        if (yield from read(self)):
            return True
        self.position = after
        self.put_content(marker)
        return False

    # Giving out

    def content_until(self, *markers: str) -> Steps[str]:
        """Gives content out up to the first of `markers`, and stands there; "" at the end."""
        while True:
            self._drop_read()
            if (found := find_first(self._text, markers)) is not None:
                self.position, marker = found
                self.put_content(self._text[: self.position])
                return marker
            is_sure = self.ended and not self._has_called
            sure = len(self._text) - (0 if is_sure else num_unsure(self._text, markers))
            self.put_content(self._text[:sure])
            self.position = sure
            if self.ended:
                self.position = len(self._text)  # half a marker after a call would have been another one
                return ""
            yield

    def put_content(self, text: str) -> None:
        """White space around calls belongs to the format: what stood before them comes only with content after."""
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        if shown := self._content.push(text):
            self.events.append(Content(shown))

    def begin_call(self, name: str) -> None:
        """From here on there is no way back: what has been read is forgotten."""
        self._after_call = self._has_called = True
        self.events.append(CallBegin(name))
        self._drop_read()

    def put_arguments(self, text: str) -> None:
        if text:
            self.events.append(Arguments(text))
            if self.position * 2 > len(self._text):  # half of it at a time: dropping copies the rest
                self._drop_read()

    def finish(self) -> None:
        """Gives out what is left, all of it content."""
        self.put_content(self._text[self.position :])
        self.position = len(self._text)
        if not self._after_call and (held := self._content.flush()):
            self.events.append(Content(held))

    def _drop_read(self) -> None:
        self._text = self._text[self.position :]
        self.position = 0


SPACE = re.compile(r"\s*")


def ignore(text: str) -> None:
    """A sink for what is read over."""
