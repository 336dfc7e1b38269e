"""Chat templates: equal to transformers' rendering, and clear about what does not fit."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from isthmus.text.chat_template import ChatTemplate, ChatTemplateError, load_chat_template
from isthmus.text.tokenizer import Tokenizer
from transformers import PreTrainedTokenizerFast

USER = {"role": "user", "content": "Hi <b> & é"}
CHATS = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Yes."}, USER],
]
CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render([USER] if messages is None else messages, **options)


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_demo_model_as_transformers(messages: list[Any], add_generation_prompt: bool, demo_folder: Path) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(demo_folder)
    ours = load_chat_template(demo_folder)
    assert ours is not None
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert ours.render(messages, add_generation_prompt=add_generation_prompt) == expected


def test_demo_model_spelled_out(demo_folder: Path, demo: Tokenizer) -> None:
    template = load_chat_template(demo_folder)
    assert template is not None
    prompt = template.render([{"role": "user", "content": "Hi"}])
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    start = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt == start
    assert demo.encode_chat(prompt)[:3] == [1, 9690, 198]


def test_continue_final_message(demo_folder: Path) -> None:
    messages = [USER, {"role": "assistant", "content": "The answer"}]
    theirs = PreTrainedTokenizerFast.from_pretrained(demo_folder)
    ours = load_chat_template(demo_folder)
    assert ours is not None
    prompt = ours.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert prompt == theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert prompt.endswith("<|im_start|>assistant\nThe answer")
    with pytest.raises(ChatTemplateError, match="cannot both be true"):
        ours.render(messages, continue_final_message=True)


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    message = {"role": "user", "content": parts}
    assert render(CHATML, [message]) == "<|user|>one\ntwo<|end|>"
    assert message["content"] is parts
    with pytest.raises(ChatTemplateError, match="'image_url' are not supported"):
        render(CHATML, [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


def test_what_templates_may_use() -> None:
    assert render("{{ bos_token }}{{ tools[0].name }}", tools=[{"name": "f"}]) == "<s>f"
    assert render("{{ enable_thinking }}", template_kwargs={"enable_thinking": False}) == "False"
    assert render("{{ messages[0] | tojson }}") == json.dumps(USER, ensure_ascii=False)
    assert render("{{ strftime_now('%Y') }}") == datetime.now().strftime("%Y")
    assert render("{% for m in 'abc' %}{% if m == 'b' %}{% break %}{% endif %}{{ m }}{% endfor %}") == "a"
    assert render("{% generation %}x{% endgeneration %}") == "x"
    assert render("  {% if true %}\nx{% endif %}\n") == "x"


def test_a_template_refuses_with_its_own_words() -> None:
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('System message first!') }}{% endif %}"
    with pytest.raises(ChatTemplateError, match="System message first!"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content + 'x' }}",
        "{{ messages[0].nothing + 'x' }}",
        "{{ 'a' + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ range(10**9) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_what_fails_or_reaches_out_is_a_template_error(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="cannot render these messages"):
        render(source)


def test_arguments_of_rendering_are_no_template_variables() -> None:
    with pytest.raises(ChatTemplateError, match="'chat_template' cannot be given"):
        render(CHATML, template_kwargs={"chat_template": "{{ 1 }}"})


def test_syntax_error_is_told_when_the_template_is_loaded() -> None:
    with pytest.raises(ValueError, match="syntax error in line 2"):
        ChatTemplate("\n{% if %}", {})


def test_override_by_text_or_file(demo_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    for override in (CHATML, str(file)):
        template = load_chat_template(demo_folder, override)
        assert template is not None
        assert template.render([{"role": "user", "content": "x"}]) == "<|user|>x<|end|>"
    with pytest.raises(ValueError, match=r"'none\.jinja' is neither a template nor a readable file"):
        load_chat_template(demo_folder, "none.jinja")


@pytest.mark.parametrize(
    ("name", "content", "source"),
    [
        ("tokenizer_config.json", {"chat_template": "A"}, "A"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "B"}]}, "B"),
        ("tokenizer_config.json", {"chat_template": [{"name": "tool_use", "template": "B"}]}, None),
        ("chat_template.json", {"chat_template": "C"}, "C"),
        ("tokenizer_config.json", {}, None),
    ],
)
def test_where_models_keep_it(name: str, content: dict[str, Any], source: str | None, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    template = load_chat_template(tmp_path)
    assert (template and template.source) == source
    (tmp_path / "chat_template.jinja").write_text("D")
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.source == "D"
