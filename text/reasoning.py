"""What a model thinks before it answers, told apart from the answer by the markers around it.

Whether the template has already opened the thought is read off the prompt, so that models whose template ends in
`<think>`, those that write it themselves and those told not to think need no setting.
"""

from dataclasses import dataclass
from typing import NamedTuple

from .markers import num_unsure
from .trimmer import Trimmer


@dataclass(frozen=True, slots=True)
class ReasoningStyle:
    """How a family of models marks its thoughts."""

    name: str
    open: str
    close: str
    always: bool = False
    """The model thinks even where neither the prompt nor the output opens the thought."""

    def begun(self, prompt: str) -> "Thought | None":
        """The thought that an output after `prompt` begins with, or may begin with; None if it is already over."""
        prompt = prompt.rstrip()
        if prompt.endswith(self.close):
            return None
        return Thought(self, self.always or prompt.endswith(self.open))


@dataclass(frozen=True, slots=True)
class Thought:
    """What an output may begin with."""

    style: ReasoningStyle
    is_open: bool
    """It does: the prompt has opened it."""


STYLES = {
    style.name: style
    for style in (
        ReasoningStyle("qwen3", "<think>", "</think>"),
        ReasoningStyle("deepseek_r1", "<think>", "</think>", always=True),
        ReasoningStyle("mistral", "[THINK]", "[/THINK]"),
        ReasoningStyle("granite", "Here is my thought process:", "Here is my response:"),
    )
}
"""By the names that vLLM gives them."""


def detect_style(template: str) -> ReasoningStyle | None:
    """The one whose markers a chat template writes; a model that always thinks has it opened there."""
    styles = [STYLES["qwen3"], STYLES["mistral"], STYLES["granite"]]
    return next((style for style in styles if style.open in template or style.close in template), None)


class Split(NamedTuple):
    reasoning: str
    answer: str


class ReasoningSplitter:
    """One output, in pieces: never half a marker, and no white space next to markers."""

    def __init__(self, thought: Thought):
        self._style = thought.style
        self._is_open = thought.is_open
        self._undecided = True
        """Whether the output has only begun, and may open the thought itself."""
        self._held = ""
        self._thought = Trimmer(left=True)
        self._after_thought = False

    def push(self, text: str) -> Split:
        text = self._held + text
        self._held = ""
        if self._undecided:
            text = self._begin(text)
        if self._undecided:
            return Split("", "")
        return self._thinking(text) if self._is_open else Split("", self._answer(text))

    def flush(self) -> Split:
        """The rest, once no more can come."""
        held, self._held = self._held, ""
        if self._is_open:
            return Split(self._thought.push(held) + self._thought.flush(), "")
        return Split("", self._answer(held))

    def _begin(self, text: str) -> str:
        """What follows an opening marker; all of `text` if there is none."""
        begun = text.lstrip()
        if begun.startswith(self._style.open):
            self._undecided, self._is_open = False, True
            return begun.removeprefix(self._style.open)
        if self._style.open.startswith(begun):
            self._held = text
        else:
            self._undecided = False
        return text

    def _thinking(self, text: str) -> Split:
        thought, close, rest = text.partition(self._style.close)
        if close:
            self._is_open, self._after_thought = False, True
            return Split(self._thought.push(thought), self._answer(rest))
        sure = len(text) - num_unsure(text, (self._style.close,))
        self._held = text[sure:]
        return Split(self._thought.push(text[:sure]), "")

    def _answer(self, text: str) -> str:
        if self._after_thought:
            text = text.lstrip()
            self._after_thought = not text
        return text
