"""Thoughts told apart from the answer, however the text is cut."""

import pytest
from isthmus.text.reasoning import STYLES, ReasoningSplitter, Thought, detect_style

# style, opened by the prompt, output, reasoning, answer
OUTPUTS = [
    ("qwen3", False, "<think>\nHm.\n</think>\n\nYes.\n", "Hm.", "Yes.\n"),
    ("qwen3", True, "Hm,\n\nwell.\n</think>\n\nYes.", "Hm,\n\nwell.", "Yes."),
    ("qwen3", True, "<think>Hm.</think>Yes.", "Hm.", "Yes."),
    ("qwen3", False, "Yes <think>.", "", "Yes <think>."),
    ("qwen3", False, " \nYes", "", " \nYes"),
    ("qwen3", False, "<thi", "", "<thi"),
    ("qwen3", False, "<think>Hm </thi", "Hm </thi", ""),
    ("qwen3", False, "<think>\n\n</think>\n\nYes", "", "Yes"),
    ("qwen3", True, "Hm. \n", "Hm. \n", ""),
    ("qwen3", True, "a</think>b</think>c", "a", "b</think>c"),
    ("mistral", False, "[THINK]Hm.[/THINK]Yes.", "Hm.", "Yes."),
    ("granite", False, "Here is my thought process: Hm. Here is my response: Yes.", "Hm.", "Yes."),
    ("qwen3", False, "", "", ""),
]


@pytest.mark.parametrize(("name", "is_open", "text", "reasoning", "answer"), OUTPUTS)
def test_outputs_are_split(name: str, is_open: bool, text: str, reasoning: str, answer: str) -> None:
    for size in (1, 2, 3, 5, len(text) or 1):
        splitter = ReasoningSplitter(Thought(STYLES[name], is_open))
        parts = [splitter.push(text[i : i + size]) for i in range(0, len(text), size)]
        parts.append(splitter.flush())
        assert ("".join(p.reasoning for p in parts), "".join(p.answer for p in parts)) == (reasoning, answer)


def test_half_a_marker_is_held_back() -> None:
    splitter = ReasoningSplitter(Thought(STYLES["qwen3"], True))
    assert splitter.push("Hm </th") == ("Hm", "")
    assert splitter.push("ing") == (" </thing", "")


PROMPTS = [
    ("qwen3", "<|im_start|>assistant\n<think>\n", True),
    ("qwen3", "<|im_start|>assistant\n", False),
    ("qwen3", "what does <think> mean?<|im_end|>\n<|im_start|>assistant\n", False),
    ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", None),
    ("deepseek_r1", "<｜Assistant｜>", True),
    ("deepseek_r1", "<｜Assistant｜><think>\n\n</think>\n\n", None),
]


@pytest.mark.parametrize(("name", "prompt", "is_open"), PROMPTS)
def test_the_prompt_tells_whether_the_thought_is_open(name: str, prompt: str, is_open: bool | None) -> None:
    thought = STYLES[name].begun(prompt)
    assert (thought and thought.is_open) == is_open


@pytest.mark.parametrize(
    ("template", "name"),
    [("{{ content.split('</think>') }}", "qwen3"), ("[THINK]", "mistral"), ("<|im_start|>", None)],
)
def test_the_style_is_told_by_the_template(template: str, name: str | None) -> None:
    style = detect_style(template)
    assert (style and style.name) == name
