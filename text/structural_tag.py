"""Free text with constrained passages in it, such as calls of tools: vLLM's structural tags, as a Lark grammar.

Text runs free until a trigger appears. From there on one of the structures that begin with the trigger must follow:
the rest of its `begin`, JSON of its schema, its `end`. Then text runs free again, and may end.

Method: "lazy lexemes" of llguidance (its docs/syntax.md, Tool calling): a lexeme of any text and the trigger that
ends as soon as the trigger is there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct


class Structure(Struct, frozen=True, forbid_unknown_fields=True):
    begin: str
    schema: dict[str, Any]
    end: str


class StructuralTag(Struct, frozen=True, forbid_unknown_fields=True):
    structures: list[Structure]
    triggers: list[str]
    type: Literal["structural_tag"] = "structural_tag"

    def trigger_of(self, structure: Structure) -> str:
        """The longest trigger its text begins with. Raises ValueError if there is none."""
        found = [trigger for trigger in self.triggers if trigger and structure.begin.startswith(trigger)]
        if not found:
            raise ValueError(f"the structure that begins with {structure.begin!r} begins with none of the triggers")
        return max(found, key=len)


def structural_tag_to_lark(tag: StructuralTag, special: Mapping[str, int]) -> str:
    """`special`: token ids of the texts that are special tokens, which the model writes as one token or not at all.
    Raises ValueError if a structure has no trigger."""
    if not tag.structures:
        raise ValueError("there are no structures")
    triggers = list(dict.fromkeys(tag.trigger_of(structure) for structure in tag.structures))
    rules = ["%llguidance {}", f"start: ({' | '.join(f'tag_{i}' for i in range(len(triggers)))})* tail"]
    rules += ["tail: TEXT", r"TEXT: /(.|\n)*/"]
    for index, trigger in enumerate(triggers):
        bodies = [_body(s, trigger, special) for s in tag.structures if tag.trigger_of(s) == trigger]
        rules += _tag_rules(index, trigger, bodies, special)
    return "\n".join(rules) + "\n"


def _tag_rules(index: int, trigger: str, bodies: Sequence[str], special: Mapping[str, int]) -> list[str]:
    choice = f"({' | '.join(bodies)})"
    if trigger in special:
        return [f"tag_{index}: TEXT {lark_literal(trigger, special)} {choice}"]
    return [f"trigger_{index}[lazy]: TEXT {lark_string(trigger)}", f"tag_{index}: trigger_{index} {choice}"]


def _body(structure: Structure, trigger: str, special: Mapping[str, int]) -> str:
    begin = lark_literal(structure.begin.removeprefix(trigger), special)
    return f"{begin} %json {json.dumps(structure.schema)} {lark_literal(structure.end, special)}"


def lark_literal(text: str, special: Mapping[str, int]) -> str:
    """`text` as a sequence of strings and, where it spells special tokens, of their ids."""
    if not special:
        return lark_string(text)
    longest_first = sorted(special, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return " ".join(f"<[{special[part]}]>" if part in special else lark_string(part) for part in parts if part)


def lark_string(text: str) -> str:
    """Lark's strings are JSON's."""
    return json.dumps(text, ensure_ascii=False)
