"""A grammar around the one a client asked for: a thought before it, or calls of tools in its place.

Method: llguidance takes several named grammars at once; `@answer` in the outer one is the inner.
"""

import json
from typing import Any

import msgspec

from ..wire.sampling import Guidance

ANSWER = "answer"


class Composed(msgspec.Struct, frozen=True):
    outer: str
    """Lark, with `@answer` in it."""
    answer: Guidance

    @property
    def guidance(self) -> Guidance:
        return Guidance("composed", msgspec.json.encode(self).decode())

    def grammar(self, answer: str) -> str:
        """`answer`: llguidance's grammar for it."""
        return json.dumps({"grammars": [{"lark_grammar": self.outer}, {**_only_part(answer), "name": ANSWER}]})


def _only_part(grammar: str) -> dict[str, Any]:
    """Lark is plain text, all else is llguidance's list of one grammar."""
    if not grammar.lstrip().startswith("{"):
        return {"lark_grammar": grammar}
    [part] = json.loads(grammar)["grammars"]
    return dict(part)
