"""What stands in for a tokenizer where only the text of tokens counts."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any


class _TokenBytes(list[bytes]):
    errors = "replace"
    strip_left = 0


def toy_tokenizer(tokens: Sequence[bytes], special_ids: Sequence[int] = ()) -> Any:
    """Token i stands for `tokens[i]`."""
    return SimpleNamespace(token_bytes=_TokenBytes(tokens), special_ids=frozenset(special_ids))


def text_of(tokens: Sequence[bytes], token_ids: Sequence[int], special_ids: Sequence[int] = ()) -> str:
    return b"".join(tokens[i] for i in token_ids if i not in special_ids).decode(errors="replace")
