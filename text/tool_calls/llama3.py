"""Llama 3: an answer that is nothing but `{"name": …, "parameters": {…}}`, or any text and then the same after
`<|python_tag|>`. Several calls stand between semicolons.

Only objects that name one of the functions are calls: others are the JSON that somebody asked for.
"""

from .json_call import read_call
from .source import SPACE, Source, Steps

TAG = "<|python_tag|>"


def read_llama3(source: Source) -> Steps[None]:
    yield from source.read_run(SPACE, source.put_content)
    yield from source.attempt("", _calls)
    while (yield from source.content_until(TAG)):
        yield from source.attempt(TAG, _calls)


def _calls(source: Source) -> Steps[bool]:
    yield from source.skip_space()
    if not (yield from read_call(source, only_known=True)):
        return False
    while (yield from _another(source)):
        pass
    return True


def _another(source: Source) -> Steps[bool]:
    yield from source.skip_space()
    start = source.position
    if (yield from source.accept(";")):
        yield from source.skip_space()
        if (yield from read_call(source, only_known=True)):
            return True
    source.position = start
    return False
