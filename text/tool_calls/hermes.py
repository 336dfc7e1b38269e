"""Hermes, Qwen 2.5 and 3, and what follows them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from .json_call import read_call
from .source import Source, Steps

BEGIN, END = "<tool_call>", "</tool_call>"


def read_hermes(source: Source) -> Steps[None]:
    while (yield from source.content_until(BEGIN)):
        yield from source.attempt(BEGIN, _call)


def _call(source: Source) -> Steps[bool]:
    yield from source.skip_space()
    if not (yield from read_call(source)):
        return False
    yield from source.skip_space()
    yield from source.close(END)
    return True
