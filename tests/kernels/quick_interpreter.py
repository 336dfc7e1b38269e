"""Triton's interpreter without what it does anew in every function that a kernel calls: about half of its time."""

import inspect
from types import SimpleNamespace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def remember() -> None:
    """What it looks for stays the same: which members of `tl` are builtins, and which dtype of numpy is which."""
    interpreter.inspect = SimpleNamespace(**{**vars(inspect), "getmembers": _Builtins()})
    interpreter._get_np_dtype = _NumpyDtypes(interpreter._get_np_dtype)


class _Builtins:
    """Of a module or class: it is searched once, when none of its members is replaced yet."""

    def __init__(self) -> None:
        self._names: dict[Any, list[str]] = {}

    def __call__(self, searched: Any) -> list[tuple[str, Any]]:
        if searched not in self._names:
            found = inspect.getmembers(searched, tl.core.is_builtin)
            self._names[searched] = [name for name, _ in found]
        return [(name, getattr(searched, name)) for name in self._names[searched]]


class _NumpyDtypes:
    def __init__(self, find: Any) -> None:
        self._find = find
        self._found: dict[str, Any] = {}

    def __call__(self, dtype: Any) -> Any:
        scalar = dtype.scalar
        if scalar.name not in self._found:
            self._found[scalar.name] = self._find(scalar)
        return self._found[scalar.name]
