"""A conversation to the prompt text the model was trained on: its Jinja chat template, as transformers renders it."""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from .tokenizer import read_json, read_special_tokens

FOREIGN_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What a template, which is a model author's code, may raise on messages it was not made for."""

OPTIONS = frozenset(inspect.signature(render_jinja_template).parameters) - {"kwargs", "documents"} | {"messages"}
"""Names that `chat_template_kwargs` cannot use: they are arguments of rendering, not variables of the template."""


class ChatTemplateError(ValueError):
    """The conversation does not fit the template, or there is none; the message is for the client."""


class ChatTemplate:
    """One model's template. Rendering is sandboxed: a template reaches no file and changes none of its arguments."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: bos_token, eos_token, …, which templates use by these names. Raises ValueError if
        `source` is not a Jinja template."""
        self.source = source
        self._special_tokens = dict(special_tokens)
        check_syntax(source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`, OpenAI's dicts with `role` and `content`: a string, None or a list of text parts.

        `continue_final_message` leaves the last message open, to be continued. `template_kwargs` are variables for
        the template. Raises ChatTemplateError.
        """
        if add_generation_prompt and continue_final_message:
            raise ChatTemplateError("add_generation_prompt and continue_final_message cannot both be true")
        if reserved := sorted(OPTIONS & set(template_kwargs or {})):
            raise ChatTemplateError(f"{reserved[0]!r} cannot be given in chat_template_kwargs")
        conversation = [{**message, **joined_content(message)} for message in messages]
        try:
            [prompt], _ = render_jinja_template(
                [conversation],
                tools=None if tools is None else [dict(tool) for tool in tools],
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self._special_tokens, **(template_kwargs or {})},
            )
        except FOREIGN_ERRORS as error:
            raise ChatTemplateError(f"the chat template cannot render these messages: {error}") from error
        return prompt


def load_chat_template(folder: Path, override: str | None = None) -> ChatTemplate | None:
    """The template of the model in `folder`, or `override`: a file's path or the template itself. None if the model
    has none. Raises ValueError if the template cannot be read."""
    source = template_in_folder(folder) if override is None else read_override(override)
    return None if source is None else ChatTemplate(source, read_special_tokens(folder))


def template_in_folder(folder: Path) -> str | None:
    """chat_template.jinja, else chat_template.json, else the tokenizer configuration's, of several the default one."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    entries = read_json(folder / "tokenizer_config.json") | read_json(folder / "chat_template.json")
    template = entries.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def read_override(override: str) -> str:
    if "{" in override or "\n" in override:
        return override
    try:
        return Path(os.path.expanduser(override)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the chat template {override!r} is neither a template nor a readable file: {error}") from None


def check_syntax(source: str) -> None:
    try:
        render_jinja_template([[]], chat_template=source)
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from None
    except FOREIGN_ERRORS:
        return  # it compiled; that it wants messages is its right


def joined_content(message: Mapping[str, Any]) -> dict[str, str]:
    """{"content": text} if the content is a list of parts, joined by newlines as other servers do; else nothing."""
    content = message.get("content")
    if not isinstance(content, list):
        return {}
    return {"content": "\n".join(part_text(part) for part in content)}


def part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ChatTemplateError(f"content parts of type {kind!r} are not supported, only text")
