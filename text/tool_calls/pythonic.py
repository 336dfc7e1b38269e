"""Calls as a list in Python: `[f(a=1), g(b="x")]`, as Llama 4 (between `<|python_start|>` and `<|python_end|>`),
Llama 3.2 and ToolACE write them. Their arguments are given out as JSON, value by value.

Only lists that call one of the functions first are calls: others are lists that somebody asked for.
"""

import ast
import json
import re
import warnings

from .json_call import read_string, take
from .source import SPACE, Source, Steps

BEGIN, END = "<|python_start|>", "<|python_end|>"
NAME = re.compile(r"[\w.-]*")
PLAIN = re.compile(r"[^\"'()\[\]{},\\]*")
IN_QUOTES = re.compile(r"[^'\\]*")
CLOSING = {"(": ")", "[": "]", "{": "}"}
BAD_LITERAL = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)
"""What ast.literal_eval and json.dumps raise for what is no literal, or none that JSON has."""


def read_pythonic(source: Source) -> Steps[None]:
    yield from source.read_run(SPACE, source.put_content)
    yield from source.attempt("", _calls)
    while (yield from source.content_until(BEGIN)):
        yield from source.attempt(BEGIN, _calls)


def _calls(source: Source) -> Steps[bool]:
    yield from source.skip_space()
    if not (yield from source.accept("[")) or not (yield from _call(source)):
        return False
    while (yield from _another(source)):
        pass
    yield from source.accept("]")
    yield from source.close(END)
    return True


def _another(source: Source) -> Steps[bool]:
    yield from source.skip_space()
    start = source.position
    if (yield from source.accept(",")) and (yield from _call(source)):
        return True
    source.position = start
    return False


def _call(source: Source) -> Steps[bool]:
    """`f(a=1, …)`: a call once its first argument, or its end, has been seen."""
    name = yield from _word(source)
    if not source.knows(name) or not (yield from source.accept("(")):
        return False
    yield from source.skip_space()
    empty = yield from source.accept(")")
    member = "" if empty else (yield from _member(source))
    if member is None:
        return False
    source.begin_call(name)
    source.put_arguments("{" + member)
    while not empty and (member := (yield from _another_member(source))):
        source.put_arguments(", " + member)
    source.put_arguments("}")
    yield from source.accept(")")
    return True


def _another_member(source: Source) -> Steps[str | None]:
    start = source.position
    if (yield from source.accept(",")) and (member := (yield from _member(source))):
        return member
    source.position = start
    return None


def _member(source: Source) -> Steps[str | None]:
    """`a=1` as `"a": 1`; None, and nothing read, if there is none."""
    start = source.position
    key = yield from _word(source)
    yield from source.skip_space()
    if key and (yield from source.accept("=")):
        value = json_of((yield from _value(source)))
        if value is not None:
            return f"{json.dumps(key)}: {value}"
    source.position = start
    return None


def _word(source: Source) -> Steps[str]:
    parts: list[str] = []
    yield from source.skip_space()
    yield from source.read_run(NAME, parts.append)
    return "".join(parts)


def _value(source: Source) -> Steps[str]:
    """The text of a literal, up to the comma or bracket after it; empty if that never comes."""
    parts: list[str] = []
    closing: list[str] = []
    while True:
        yield from source.read_run(PLAIN, parts.append)
        character = yield from source.peek()
        if not closing and character in (",", ")"):
            return "".join(parts)
        if character == '"':
            yield from read_string(source, parts.append)
        elif character == "'":
            yield from _quoted(source, parts)
        elif character in CLOSING:
            closing.append(CLOSING[character])
            take(source, character, parts.append)
        elif character and closing and character in (",", closing[-1]):
            closing = closing if character == "," else closing[:-1]
            take(source, character, parts.append)
        else:
            return ""


def _quoted(source: Source, parts: list[str]) -> Steps[None]:
    take(source, "'", parts.append)
    while True:
        yield from source.read_run(IN_QUOTES, parts.append)
        character = yield from source.peek()
        take(source, character, parts.append)
        if character in ("'", ""):
            return
        take(source, (yield from source.peek()), parts.append)


def json_of(literal: str) -> str | None:
    """A literal of JSON or Python as JSON; None if it is none."""
    try:
        return json.dumps(json.loads(literal), ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" is meant as it is written
            value = ast.literal_eval(literal.strip())
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except BAD_LITERAL:
        return None
