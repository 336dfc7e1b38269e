"""What a request's fields are for, in the words that stand below them in their struct."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from textwrap import dedent

import msgspec


def field_help(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string after each field of `struct` and of the structs it extends, by the field's name, on one line."""
    parents = [each for each in reversed(struct.__mro__) if "__annotations__" in vars(each)]
    return {name: " ".join(text.split()) for each in parents for name, text in _documented(each)}


@cache
def _documented(cls: type) -> tuple[tuple[str, str], ...]:
    return tuple(_read(cls))


def _read(cls: type) -> Iterator[tuple[str, str]]:
    [definition] = ast.parse(dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for field, after in pairwise(definition.body):
        match field, after:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                yield name, text
