"""JSON as JavaScript writes it: with half a surrogate pair where a text was cut within a character.

Such a half stands for no character, and no UTF-8 has it: it is read as U+FFFD.
"""

import json
import re
from typing import Any

LONE_SURROGATE = re.compile(
    rb"""((?: [^\\]+ | \\[^u] | \\u(?:[^dD]|[dD][0-7])
    | \\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}){1,4096})  # all else: a long run holds others up
    | \\u[dD][89a-fA-F][0-9a-fA-F]{2}""",
    re.VERBOSE,
)
"""As an escape, in JSON. (No possessive quantifiers: before Python 3.11.5 they lose what groups have matched.)"""


def without_lone_surrogates(raw: bytes) -> bytes:
    """The same JSON, with U+FFFD in their place."""
    return LONE_SURROGATE.sub(lambda found: found[1] or rb"\ufffd", raw)


def loads(text: str) -> Any:
    """As json.loads, of JSON within a string. Raises ValueError, RecursionError."""
    return json.loads(without_lone_surrogates(text.encode()) if r"\u" in text else text)
