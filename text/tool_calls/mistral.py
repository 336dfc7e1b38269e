"""Mistral: `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, and since tokenizer version 11
`[TOOL_CALLS]name[ARGS]{…}` for each call, with or without `[CALL_ID]id` before `[ARGS]`."""

import re

from .json_call import object_begins, read_call, stream_arguments
from .source import Source, Steps, ignore

BEGIN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
NAME = re.compile(r"[\w.:/-]*")


def read_mistral(source: Source) -> Steps[None]:
    while (yield from source.content_until(BEGIN)):
        yield from source.attempt(BEGIN, _calls)


def _calls(source: Source) -> Steps[bool]:
    yield from source.skip_space()
    if not (yield from source.accept("[")):
        return (yield from _named(source))
    yield from source.skip_space()
    if not (yield from read_call(source)):
        return False
    while (yield from _another(source)):
        pass
    yield from source.accept("]")
    return True


def _another(source: Source) -> Steps[bool]:
    yield from source.skip_space()
    start = source.position
    if (yield from source.accept(",")):
        yield from source.skip_space()
        if (yield from read_call(source)):
            return True
    source.position = start
    return False


def _named(source: Source) -> Steps[bool]:
    parts: list[str] = []
    yield from source.read_run(NAME, parts.append)
    if (yield from source.accept(CALL_ID)):
        yield from source.read_run(NAME, ignore)
    yield from source.accept(ARGS)
    yield from source.skip_space()
    name = "".join(parts)
    if not name or not (yield from object_begins(source)):
        return False
    yield from stream_arguments(source, name)
    return True
