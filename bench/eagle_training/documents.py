"""Documents that are on every machine with Python: the docstrings of its library."""

import ast
import sysconfig
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

MIN_CHARS, MAX_CHARS = 120, 900


def library_documents(limit: int | None = None) -> list[str]:
    """Docstrings of modules, classes and functions, without their line breaks, at most `limit`; always in one order.
    Nothing is imported for them."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        found |= dict.fromkeys(docstrings(path.read_text(encoding="utf-8", errors="replace")))
        if limit is not None and len(found) >= limit:
            break
    return list(found)[:limit]


def docstrings(source: str) -> Iterator[str]:
    """Of a module's source, those that are neither too short to be asked about nor too long for a prompt."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join(cleandoc(ast.get_docstring(node) or "").split())
            if MIN_CHARS <= len(text) <= MAX_CHARS:
                yield text
