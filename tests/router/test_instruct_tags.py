"""What stands around turns, found by rendering: the placeholders filled in give the template's own conversation."""

import pytest
from isthmus.router.instruct_tags import instruct_tags
from isthmus.tests.router.edge import TEMPLATE
from isthmus.text.chat_template import ChatTemplate, ChatTemplateError

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}" + TEMPLATE
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}{{ raise_exception('no system') }}"
    "{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": TEMPLATE, "llama3": LLAMA3, "default system": DEFAULT_SYSTEM, "mistral": MISTRAL}
BOS = "<s>"
TALK = [("user", "How are you?"), ("assistant", "Fine."), ("user", "Good.")]
PLACEHOLDERS = {"system": "SYSTEM", "user": "INPUT", "assistant": "OUTPUT"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": BOS})


def rendered(source: str, talk: list[tuple[str, str]]) -> str:
    return template(source).render([{"role": role, "content": text} for role, text in talk])


def marked(talk: list[tuple[str, str]], *, ends: bool) -> str:
    parts = []
    for role, text in talk:
        name = PLACEHOLDERS[role]
        parts.append(f"{{{{[{name}]}}}}{text}" + (f"{{{{[{name}_END]}}}}" if ends else ""))
    return "".join(parts) + "{{[OUTPUT]}}"


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", ["chatml", "llama3", "default system"])
def test_a_conversation_reads_as_the_template_writes_it(name: str, ends: bool) -> None:
    talk = [("system", "Be kind."), *TALK]
    tags = instruct_tags(template(TEMPLATES[name]), BOS)
    assert tags.fill(marked(talk, ends=ends)) == rendered(TEMPLATES[name], talk).removeprefix(BOS)


def test_a_template_without_a_system_prompt_has_users_say_it() -> None:
    tags = instruct_tags(template(MISTRAL), BOS)
    assert tags.start["SYSTEM"] == tags.start["INPUT"] == "[INST] "
    assert tags.fill("{{[INPUT]}}a{{[OUTPUT]}}") == "[INST] a [/INST]"


def test_text_without_placeholders_stays() -> None:
    tags = instruct_tags(template(TEMPLATE), BOS)
    assert tags.fill("plain {{[OTHER]}}") == "plain {{[OTHER]}}"
    assert [tags.stop(text) for text in ("END", "\n", "\nYou:")] == ["END", "\n", "\nYou:"]
    assert tags.stop("{{[INPUT]}}") == "<|im_start|>user"


def test_a_template_that_rewrites_what_is_said_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="surrounds a turn"):
        instruct_tags(template("{% for m in messages %}{{ m.content | upper }}{% endfor %}"), BOS)
