"""DeepSeek V3 and R1: `function`, a separator, the name and a fenced block of JSON; since V3.1 the name, the separator
and JSON."""

from .json_call import object_begins, stream_arguments
from .source import Source, Steps

ALL_BEGIN, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
MARKERS = (ALL_BEGIN, ALL_END, BEGIN, SEPARATOR, END)
KIND, FENCE_BEGIN, FENCE_END = "function", "```json", "```"


def read_deepseek(source: Source) -> Steps[None]:
    while (yield from source.content_until(ALL_BEGIN)):
        yield from source.attempt(ALL_BEGIN, _calls)


def _calls(source: Source) -> Steps[bool]:
    if not (yield from _call(source)):
        return False
    while (yield from _another(source)):
        pass
    yield from source.close(ALL_END)
    return True


def _another(source: Source) -> Steps[bool]:
    yield from source.skip_space()
    start = source.position
    if (yield from _call(source)):
        return True
    source.position = start
    return False


def _call(source: Source) -> Steps[bool]:
    if not (yield from source.accept(BEGIN)):
        return False
    name = yield from source.read_until(SEPARATOR)
    fenced = name == KIND
    if fenced:
        name = yield from source.read_until("\n")
        yield from source.accept(FENCE_BEGIN)
    yield from source.skip_space()
    if not name or not (yield from object_begins(source)):
        return False
    yield from stream_arguments(source, name.strip())
    yield from source.skip_space()
    if fenced:
        yield from source.close(FENCE_END)
    yield from source.close(END)
    return True
