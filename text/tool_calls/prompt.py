"""Tools for models whose chat template has no place for them: told in words, in a format that can be read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .formats import CallFormat

Message = Mapping[str, Any]


def knows_tools(template: str) -> bool:
    """Whether a chat template has a place for them."""
    return "tools" in template


def told_of_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], form: CallFormat
) -> list[dict[str, Any]]:
    """The conversation with the tools in its system message, and earlier calls and results as text."""
    plain = list(joined_users(as_text(message, form) for message in messages))
    if not tools:
        return plain
    about = instructions(tools, form)
    if plain and plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content'] or ''}\n\n{about}".strip()}, *plain[1:]]
    return [{"role": "system", "content": about}, *plain]


def instructions(tools: Sequence[Mapping[str, Any]], form: CallFormat) -> str:
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    values = form.syntax.write({"argument": "value"})
    form_of_call = call_text("name", values, form)
    return (
        f"You can call functions. There are these, each with a JSON schema of its arguments:\n{functions}\n\n"
        f"To call one, answer with its name and its arguments in exactly this form:\n{form_of_call}\n"
        "Call a function only if it helps; otherwise answer in plain words."
    )


def call_text(name: str, arguments: str, form: CallFormat) -> str:
    syntax = form.syntax
    return f"{syntax.before}{syntax.begin(name)}{arguments}{syntax.end}{syntax.after}"


def as_text(message: Message, form: CallFormat) -> dict[str, Any]:
    """Without what such a template would leave out."""
    plain = {name: value for name, value in message.items() if name not in ("tool_calls", "tool_call_id")}
    if message["role"] == "tool":
        return {**plain, "role": "user", "content": f"The function's result:\n{message.get('content') or ''}"}
    if calls := message.get("tool_calls"):
        texts = [call_text(call["function"]["name"], arguments_text(call, form), form) for call in calls]
        return {**plain, "content": "\n".join(filter(None, [message.get("content"), *texts]))}
    return plain


def arguments_text(call: Mapping[str, Any], form: CallFormat) -> str:
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str):
        return arguments  # no JSON object: as it was made
    return form.syntax.write(arguments)


def joined_users(messages: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Users' messages in a row as one: several results, or one and what the user says to it. Templates without tools
    often want users and assistants in turn."""
    last: dict[str, Any] | None = None
    for message in messages:
        both_users = last is not None and last["role"] == message["role"] == "user"
        if last is not None and both_users and isinstance(last["content"], str) and isinstance(message["content"], str):
            last = {**last, "content": f"{last['content']}\n\n{message['content']}"}
            continue
        if last is not None:
            yield last
        last = message
    if last is not None:
        yield last
