"""The calls a model may make, as a Lark grammar of llguidance: in the model's format, arguments by their schemas."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..reasoning import Thought
from ..structural_tag import lark_literal, lark_string
from .qwen3_coder import is_string

WHITESPACE = r"( |\n[ \t]{0,20})?"
"""Between the tokens of the arguments' JSON: bounded, since models may write spaces until their tokens end."""
SPACE = r"/\s{0,4}/"
TEXT = r"/(.|\n)*/"
Special = Mapping[str, int]
"""Ids of special tokens by their text: the model writes those as one token or not at all."""


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    schema: Mapping[str, Any]
    """Of its arguments, an object."""


ArgumentsRule = Callable[[Function, str, Special], list[str]]
"""(function, rule name, special) to the rules of that name, and of names that begin with it, for its arguments."""


def json_arguments(function: Function, rule: str, special: Special) -> list[str]:
    schema = {"type": "object", "x-guidance": {"whitespace_pattern": WHITESPACE}, **function.schema}
    return [f"{rule}: %json {json.dumps(schema)}"]


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How a format writes calls: `before`, calls with `between` between them, `after`."""

    begin: Callable[[str], str]
    """What stands before a call's arguments, by the function's name."""
    end: str
    between: str
    before: str = ""
    after: str = ""
    trigger: str = ""
    """What announces calls after any text. Without one an answer that begins like a call is one, and no other is."""
    arguments: ArgumentsRule = json_arguments
    write: Callable[[Mapping[str, Any]], str] = json_text
    """Arguments as the model writes them, where it has to be shown."""

    @property
    def opening(self) -> str:
        """The first character of what is a call, where there is no trigger."""
        return (self.before or self.begin(""))[0]


def calls_grammar(
    syntax: CallSyntax,
    functions: Sequence[Function],
    *,
    parallel: bool,
    otherwise: Literal["nothing", "text", "answer"],
    thought: Thought | None,
    special: Special,
) -> str:
    """`parallel`: there may be more than one call. `otherwise`: what may come instead of calls, or, if it is text,
    before and after them; "answer" is a rule of that name in another grammar. Raises ValueError if the format cannot
    express a function's schema."""
    rules = ["%llguidance {}", "start: thought body", *thought_rules(thought, special)]
    rules += [f"TEXT: {TEXT}", *_body_rules(syntax, parallel, otherwise, special)]
    for index, function in enumerate(functions):
        begin, end = lark_literal(syntax.begin(function.name), special), lark_literal(syntax.end, special)
        if syntax.trigger:
            rest = lark_literal(syntax.begin(function.name).removeprefix(syntax.trigger), special)
            rules.append(f"rest_{index}: {rest} arguments_{index} {end}")
        rules.append(f"call_{index}: {begin} arguments_{index} {end}")
        rules += syntax.arguments(function, f"arguments_{index}", special)
    rules += [f"{name}: {_any_of(name, functions)}" for name in ("call", "rest")[: 1 + bool(syntax.trigger)]]
    return "\n".join(rules) + "\n"


def _any_of(name: str, functions: Sequence[Function]) -> str:
    return " | ".join(f"{name}_{index}" for index in range(len(functions)))


def thought_rules(thought: Thought | None, special: Special) -> list[str]:
    """The rule `thought`."""
    if thought is None:
        return ["thought:"]
    style = thought.style
    closed = until("thinking", style.close, special)
    if thought.is_open:
        return [f"thought: thinking {SPACE}", closed]
    return [f"thought: ({lark_literal(style.open, special)} thinking {SPACE})?", closed]


def until(rule: str, marker: str, special: Special) -> str:
    """Any text and `marker`, which ends it where it first comes."""
    lazy = "" if marker in special else "[lazy]"
    return f"{rule}{lazy}: {TEXT} {lark_literal(marker, special)}"


def _body_rules(syntax: CallSyntax, parallel: bool, otherwise: str, special: Special) -> Iterator[str]:
    before, between, after = (lark_literal(text, special) for text in (syntax.before, syntax.between, syntax.after))
    more = f"({between} call)*" if parallel else ""
    yield f"calls: {before} call {more} {after}"
    if otherwise == "nothing":
        yield "body: calls"
    elif otherwise == "answer":
        yield "body: calls | @answer"
    elif not syntax.trigger:
        yield rf"body: calls | /(\s*[^\s{_in_set(syntax.opening)}](.|\n)*)?/"
    else:
        yield until("lead", syntax.trigger, special)
        yield "body: tag* TEXT" if parallel else "body: tag | TEXT"
        if syntax.before:
            yield f"tag: lead {lark_literal(syntax.before.removeprefix(syntax.trigger), special)} call {more} {after}"
        else:
            yield "tag: lead rest"


def _in_set(character: str) -> str:
    return "\\" + character


def answer_grammar(thought: Thought, special: Special) -> str:
    """A thought, and then what another grammar, named answer, describes."""
    return "\n".join(["%llguidance {}", "start: thought @answer", *thought_rules(thought, special)]) + "\n"


def python_arguments(function: Function, rule: str, special: Special) -> list[str]:
    """`a=1, b="x"`, in the order of the schema's properties. Values are JSON's, which readers of the format take."""

    def value(name: str, schema: Mapping[str, Any]) -> str:
        if not name.isidentifier():
            raise ValueError(f"the property {name!r} is no name in the format of this model's calls")
        return f"{lark_string(name + '=')} %json {json.dumps(schema)}"

    return members(function, rule, value, separator=", ")


def python_text(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={json_text(value)}" for name, value in arguments.items())


TEXT_ONLY = frozenset(["type", "description", "title", "default", "examples", "$defs"])


def markup_arguments(function: Function, rule: str, special: Special) -> list[str]:
    """`<parameter=a>` and so on, in the order of the schema's properties. Strings stand there without quotes."""

    def value(name: str, schema: Mapping[str, Any]) -> str:
        begin, end = lark_literal(f"<parameter={name}>\n", special), lark_string("\n</parameter>\n")
        if not is_string(schema):
            return f"{begin} %json {json.dumps(schema)} {end}"
        if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
            return f"{begin} ({' | '.join(map(lark_string, choices))}) {end}"
        if unknown := sorted(schema.keys() - TEXT_ONLY):
            raise ValueError(
                f"{unknown[0]} of the string {name!r} cannot be expressed in the format of this model's calls"
            )
        return f"{begin} {rule}_text"

    text = f"{rule}_text[lazy]: {TEXT} {lark_string(chr(10) + '</parameter>' + chr(10))}"
    return [text, *members(function, rule, value, separator="")]


def markup_text(arguments: Mapping[str, Any]) -> str:
    texts = ((name, value if isinstance(value, str) else json_text(value)) for name, value in arguments.items())
    return "".join(f"<parameter={name}>\n{text}\n</parameter>\n" for name, text in texts)


def members(
    function: Function, rule: str, value: Callable[[str, Mapping[str, Any]], str], *, separator: str
) -> list[str]:
    """Properties one after another, those that are optional or not. `value`: what is written for one, as Lark."""
    known = {"type", "properties", "required", "additionalProperties", "description", "title", "$defs", "$schema"}
    if unknown := sorted(function.schema.keys() - known):
        raise ValueError(f"{unknown[0]} cannot be expressed in the format of this model's calls, only properties")
    definitions = {key: function.schema[key] for key in ("$defs",) if key in function.schema}
    properties = dict(function.schema.get("properties", {}))
    rules = [f"{rule}: {rule}_first_0"]
    for index, (name, schema) in enumerate(properties.items()):
        rules.append(
            f"{rule}_value_{index}: {value(name, {**definitions, **(schema if isinstance(schema, dict) else {})})}"
        )
        left_out = name not in function.schema.get("required", ())
        for part, lead in (("first", ""), ("more", f"{lark_string(separator)} " if separator else "")):
            skip = f" | {rule}_{part}_{index + 1}" if left_out else ""
            rules.append(f"{rule}_{part}_{index}: {lead}{rule}_value_{index} {rule}_more_{index + 1}{skip}")
    return [*rules, f"{rule}_first_{len(properties)}:", f"{rule}_more_{len(properties)}:"]
