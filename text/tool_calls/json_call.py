"""A call written as a JSON object, and JSON values as they come.

Arguments are given out while they are written, as the model wrote them. So a call is believed once its name and the
first key of its arguments have been seen: until then what is malformed stays content, from then on the arguments end
where they stop being JSON.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from .source import Source, Steps, ignore

ARGUMENTS = ("arguments", "parameters")
OUTSIDE_STRINGS = re.compile(r"[\s\w:,.+-]*")
IN_STRING = re.compile(r'[^"\\]*')
SCALAR = re.compile(r"[\w.+-]*")
CLOSING = {"{": "}", "[": "]"}
Sink = Callable[[str], None]


def read_call(source: Source, *, only_known: bool = False) -> Steps[bool]:
    """`{"name": …, "arguments": {…}}` with its keys in any order. False, and nothing given out, if it is none.
    `only_known`: other names than those of the functions are no calls either."""
    name: str | None = None
    arguments: str | None = None
    if not (yield from source.accept("{")):
        return False
    while (key := (yield from read_key(source))) is not None:
        if key == "name":
            name = decoded_string((yield from collect_value(source)))
            if not name or (only_known and not source.knows(name)):
                return False
        elif key in ARGUMENTS and name is not None and (yield from object_begins(source)):
            yield from stream_arguments(source, name)
            yield from skip_members(source)
            return True
        elif key in ARGUMENTS:
            arguments = object_text((yield from collect_value(source)))
            if arguments is None:
                return False
        elif (yield from collect_value(source)) is None:
            return False
        yield from source.skip_space()
        if not (yield from source.accept(",")):
            break
    if name is None or not (yield from source.accept("}")):
        return False
    source.begin_call(name)
    source.put_arguments(arguments or "{}")
    return True


def stream_arguments(source: Source, name: str) -> Steps[None]:
    """The object that begins here, as the arguments of a call of `name`."""
    source.begin_call(name)
    yield from read_value(source, source.put_arguments)


def object_begins(source: Source) -> Steps[bool]:
    """Whether JSON's `{` comes next, and after it a key, its end, or nothing more. Reads nothing."""
    start = source.position
    found = yield from source.accept("{")
    if found:
        yield from source.skip_space()
        found = (yield from source.peek()) in ('"', "}", "")
    source.position = start
    return found


def skip_members(source: Source) -> Steps[None]:
    """What is left of an object after a value, as far as it is JSON."""
    yield from source.skip_space()
    while (yield from source.accept(",")):
        if (yield from read_key(source)) is None or not (yield from read_value(source, ignore)):
            return
        yield from source.skip_space()
    yield from source.accept("}")


def read_key(source: Source) -> Steps[str | None]:
    """A key and its colon; None if there is none."""
    yield from source.skip_space()
    if (yield from source.peek()) != '"':
        return None
    key = decoded_string((yield from collect_value(source)))
    yield from source.skip_space()
    if not (yield from source.accept(":")):
        return None
    yield from source.skip_space()
    return key


def collect_value(source: Source) -> Steps[str | None]:
    """The text of one value; None if it is broken off or not JSON."""
    parts: list[str] = []
    return "".join(parts) if (yield from read_value(source, parts.append)) and any(parts) else None


def read_value(source: Source, sink: Sink) -> Steps[bool]:
    """Gives one value's text to `sink` as it comes. False if it ends too early, or in what JSON does not have."""
    closing: list[str] = []
    while True:
        character = yield from source.peek()
        if character == '"':
            if not (yield from read_string(source, sink)):
                return False
        elif character in CLOSING:
            closing.append(CLOSING[character])
            take(source, character, sink)
        elif closing and character == closing[-1]:
            closing.pop()
            take(source, character, sink)
        elif not closing:
            yield from source.read_run(SCALAR, sink)
        else:
            return False
        if not closing:
            return True
        yield from source.read_run(OUTSIDE_STRINGS, sink)


def read_string(source: Source, sink: Sink) -> Steps[bool]:
    take(source, '"', sink)
    while True:
        yield from source.read_run(IN_STRING, sink)
        character = yield from source.peek()
        if not character:
            return False
        take(source, character, sink)
        if character == '"':
            return True
        take(source, (yield from source.peek()), sink)


def take(source: Source, character: str, sink: Sink) -> None:
    source.position += len(character)
    sink(character)


def decoded_string(text: str | None) -> str | None:
    """Of a JSON string's text; None if it is no string."""
    value = decoded(text)
    return value if isinstance(value, str) else None


def object_text(text: str | None) -> str | None:
    """Arguments that were read whole: an object, one in a string, or null; None if they are none of these."""
    value = decoded(text)
    if isinstance(value, str):
        text, value = value or "{}", decoded(value or "{}")
    return "{}" if text == "null" else text if isinstance(value, dict) else None


def decoded(text: str | None) -> Any:
    """None if it is not JSON."""
    try:
        return json.loads(text or "", strict=False)
    except (ValueError, RecursionError):
        return None
