"""Kobold Lite's instruct placeholders, such as {{[INPUT]}}, filled in from the model's chat template.

Lite marks the turns of a conversation with them where the user has chosen the server's own format. What goes around
each turn is found by rendering a conversation of marks.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from ..text.chat_template import ChatTemplate, ChatTemplateError

PLACEHOLDER = re.compile(r"\{\{\[(INPUT|OUTPUT|SYSTEM)(_END)?\]\}\}")
SYSTEM, USER, ASSISTANT, NEXT = (f"isthmus{number}mark" for number in range(4))
"""What the turns say: nothing that a template would treat in a way of its own."""


@dataclass(frozen=True, slots=True)
class InstructTags:
    """What stands before and after a turn of each role."""

    start: dict[str, str]
    """By INPUT, OUTPUT and SYSTEM."""
    end: dict[str, str]

    def fill(self, text: str, before: str = "") -> str:
        """`text`, which `before` precedes, with its placeholders replaced. Where there are none for the ends of turns,
        the start of one ends the turn before it."""
        has_ends = "_END]}}" in before + text
        parts, position, open_role = [], 0, last_role(before)
        for found in PLACEHOLDER.finditer(text):
            role, is_end = found[1], bool(found[2])
            end = "" if has_ends or not open_role else self.end[open_role]
            parts += [text[position : found.start()], self.end[role] if is_end else end + self.start[role]]
            position, open_role = found.end(), "" if is_end else role
        return "".join(parts) + text[position:]

    def stop(self, text: str) -> str:
        """A stop sequence: a placeholder stands for the tag alone, as answers may leave out the spaces around it."""
        if not PLACEHOLDER.search(text):
            return text
        return PLACEHOLDER.sub(lambda found: (self.end if found[2] else self.start)[found[1]], text).strip()


def last_role(text: str) -> str:
    """Whose turn `text` leaves open; empty where nobody's."""
    last = max(PLACEHOLDER.finditer(text), key=lambda found: found.start(), default=None)
    return last[1] if last is not None and not last[2] else ""


@lru_cache(maxsize=8)
def instruct_tags(template: ChatTemplate, bos: str) -> InstructTags:
    """`bos`, the text of the token that begins a prompt, is left out. Raises ChatTemplateError if nothing is to be
    found: the template rewrites what is said."""
    try:
        return tags_of(template, bos, has_system=True)
    except ChatTemplateError:
        return tags_of(template, bos, has_system=False)  # many templates know no system prompt


def tags_of(template: ChatTemplate, bos: str, *, has_system: bool) -> InstructTags:
    talk = [("system", SYSTEM)] * has_system + [("user", USER), ("assistant", ASSISTANT), ("user", NEXT)]
    head, *rest = between(template, talk, generate=False)
    *_, after_assistant, user_end = rest
    *_, prompt = between(template, talk, generate=True)
    *_, assistant_end = between(template, talk[:-1], generate=False)
    user_start = after_assistant.removeprefix(assistant_end)
    head = head.removeprefix(bos)
    system_start, system_end = (head, rest[0].removesuffix(user_start)) if has_system else (user_start, user_end)
    return InstructTags(
        start={"INPUT": user_start, "OUTPUT": prompt.removeprefix(user_end), "SYSTEM": system_start},
        end={"INPUT": user_end, "OUTPUT": assistant_end, "SYSTEM": system_end},
    )


def between(template: ChatTemplate, talk: list[tuple[str, str]], *, generate: bool) -> list[str]:
    """The text before the first mark, between each two, and after the last."""
    messages = [{"role": role, "content": mark} for role, mark in talk]
    text = template.render(messages, add_generation_prompt=generate)
    parts = re.split("|".join(mark for _, mark in talk), text)
    if len(parts) != len(talk) + 1:
        raise ChatTemplateError("the chat template does not show what surrounds a turn")
    return parts
