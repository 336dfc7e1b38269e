"""Qwen3-Coder: markup between the markers of Hermes, a line for each tag.

    <tool_call> <function=NAME> <parameter=KEY> VALUE </parameter> … </function> </tool_call>

Values have no quotes: what the schema says is a string is taken as it stands, all else is JSON if it can be. Arguments
are given out as JSON, value by value.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from .json_call import decoded
from .source import Source, Steps

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
NAME = re.compile(r"[^<>\s]*")


def read_qwen3_coder(source: Source) -> Steps[None]:
    while (yield from source.content_until(BEGIN)):
        yield from source.attempt(BEGIN, _call)


def _call(source: Source) -> Steps[bool]:
    """A call once its first parameter, or its end, has been seen."""
    yield from source.skip_space()
    name = yield from _tag(source, FUNCTION)
    if not name:
        return False
    yield from source.skip_space()
    empty = yield from source.accept(FUNCTION_END)
    member = "" if empty else (yield from _member(source, name))
    if member is None:
        return False
    source.begin_call(name)
    source.put_arguments("{" + member)
    while not empty and (member := (yield from _member(source, name))):
        source.put_arguments(", " + member)
    source.put_arguments("}")
    for tag in (FUNCTION_END, END):
        yield from source.skip_space()
        yield from source.close(tag)
    return True


def _member(source: Source, function: str) -> Steps[str | None]:
    """A parameter as a member of a JSON object; None, and nothing read, if there is none."""
    yield from source.skip_space()
    start = source.position
    if key := (yield from _tag(source, PARAMETER)):
        text = yield from source.read_until(PARAMETER_END)
        if text is not None:
            text = text.removeprefix("\n").removesuffix("\n")
            return f"{json.dumps(key, ensure_ascii=False)}: {value_text(text, source.schemas.get(function, {}), key)}"
    source.position = start
    return None


def _tag(source: Source, opening: str) -> Steps[str]:
    """The name in `<function=NAME>`; empty if there is none."""
    parts: list[str] = []
    if not (yield from source.accept(opening)):
        return ""
    yield from source.read_run(NAME, parts.append)
    return "".join(parts) if (yield from source.accept(">")) else ""


def value_text(text: str, schema: Mapping[str, Any], key: str) -> str:
    """A value as JSON."""
    properties = schema.get("properties", {})
    about = properties.get(key, {}) if isinstance(properties, dict) else {}
    if isinstance(about, dict) and is_string(about):
        return json.dumps(text, ensure_ascii=False)
    value = decoded(text)
    known = value is not None or text.strip() == "null"
    return json.dumps(value if known else text, ensure_ascii=False)


def is_string(schema: Mapping[str, Any]) -> bool:
    """Whether a schema describes strings and nothing else."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return schema.get("type") == "string" or bool(values and all(isinstance(value, str) for value in values))
