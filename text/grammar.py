"""What an output must match, as the one kind of grammar that llguidance compiles.

Raises GrammarError throughout, with a sentence for the client. Nothing here knows a tokenizer: see
`grammar_compiler`.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark, is_lark_syntax

from ..wire.json_text import loads
from ..wire.sampling import Guidance
from .composed import Composed
from .structural_tag import StructuralTag, lark_string, structural_tag_to_lark

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SPEC_CHARS = 1 << 18
MAX_WHITESPACE_CHARS = 1000
WHITESPACE = r"( |\n{1,2}[ \t]{0,20})?"
"""Between the tokens of JSON: llama.cpp's rule. Without bounds, models may write spaces until their tokens end."""
JSON_DEFAULTS: "JsonCompileOptions" = {"whitespace_pattern": WHITESPACE}


class GrammarError(ValueError):
    """A grammar that cannot be used; the message tells the client why."""


def grammar_of(guidance: Guidance, special: Mapping[str, int]) -> str:
    """llguidance's grammar for it, whose rules are not checked yet. `special`: ids of special tokens by their text."""
    if len(guidance.spec) > MAX_SPEC_CHARS:
        raise GrammarError(f"has {len(guidance.spec)} characters, more than {MAX_SPEC_CHARS}")
    if guidance.kind == "composed":
        return composed_grammar(guidance.spec, special)
    if guidance.kind == "structural_tag":
        return structural_tag_grammar(guidance.spec, special)
    try:
        return GRAMMARS[guidance.kind](guidance.spec)
    except RecursionError:
        raise GrammarError("is nested too deeply") from None


def json_schema_grammar(spec: str) -> str:
    schema = json_object(spec)
    try:
        return LLMatcher.grammar_from_json_schema(schema, defaults=JSON_DEFAULTS)
    except ValueError as error:
        raise GrammarError(f"is not a JSON schema: {error}") from None


def json_object_grammar(_: str) -> str:
    return json_schema_grammar('{"type": "object"}')


def regex_grammar(spec: str) -> str:
    r"""The whole output matches. As in JavaScript and JSON Schema, `\d` and `\w` are ASCII."""
    return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(spec, 'dw')}/" if spec else 'start: ""')


def check_whitespace(pattern: str) -> None:
    """Whether it is a regular expression, found without building anything from it."""
    if len(pattern) > MAX_WHITESPACE_CHARS:
        raise GrammarError(f"has {len(pattern)} characters, more than {MAX_WHITESPACE_CHARS}")
    try:
        wrong = LLMatcher.validate_grammar(regex_grammar(pattern))
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise GrammarError(f"is not a regex: {wrong}")


def gbnf_grammar(spec: str) -> str:
    """llama.cpp's GBNF, whose start rule is `root`."""
    try:
        return LLMatcher.grammar_from_lark(gbnf_to_lark(spec))
    except GbnfToLarkError as error:
        raise GrammarError(f"is not GBNF: {error}") from None
    except RecursionError:
        raise
    except Exception as error:  # the converter has no other type for a rule that is missing or there twice
        raise GrammarError(f"is not GBNF: {error}") from None


def choice_grammar(spec: str) -> str:
    choices = msgspec.json.decode(spec, type=list[str])
    return LLMatcher.grammar_from_lark("start: " + " | ".join(map(lark_string, choices)))


def composed_grammar(spec: str, special: Mapping[str, int]) -> str:
    composed = msgspec.json.decode(spec, type=Composed)
    return composed.grammar(grammar_of(composed.answer, special))


def structural_tag_grammar(spec: str, special: Mapping[str, int]) -> str:
    try:
        tag = msgspec.json.decode(spec, type=StructuralTag)
        return LLMatcher.grammar_from_lark(structural_tag_to_lark(tag, special))
    except ValueError as error:
        raise GrammarError(str(error)) from None


GRAMMARS: dict[str, Callable[[str], str]] = {
    "json_schema": json_schema_grammar,
    "json_object": json_object_grammar,
    "regex": regex_grammar,
    "lark": LLMatcher.grammar_from_lark,
    "gbnf": gbnf_grammar,
    "choice": choice_grammar,
}


def grammar_kind(spec: str) -> Literal["lark", "gbnf"]:
    """Which of the two languages a grammar is written in."""
    return "lark" if is_lark_syntax(spec) else "gbnf"


def json_object(text: str) -> dict[str, Any]:
    """Keys stay in order: it is that of the output's."""
    try:
        value = loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise GrammarError("is not a JSON object")
    return value
