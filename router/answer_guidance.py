"""The grammar of a whole answer: a thought first, calls of tools where they must or may come, and what a client asked
of the answer itself."""

from collections.abc import Mapping
from typing import Literal

from ..text.composed import Composed
from ..text.reasoning import Thought
from ..text.tool_calls.formats import CallFormat
from ..text.tool_calls.grammar import answer_grammar, calls_grammar
from ..wire.sampling import Guidance
from .tool_fields import ToolUse


def answer_guidance(
    asked: Guidance | None,
    use: ToolUse | None,
    call_format: CallFormat | None,
    thought: Thought | None,
    special: Mapping[str, int],
) -> Guidance | None:
    """`asked`: of the answer. Raises ValueError if the format of calls cannot express a function's schema."""
    if use is None or call_format is None:
        if asked is None or thought is None:
            return asked
        return Composed(answer_grammar(thought, special), asked).guidance
    otherwise: Literal["nothing", "text", "answer"] = "text" if asked is None else "answer"
    if use.must_call:
        otherwise = "nothing"
    elif otherwise == "text" and use.parallel and not use.strict:
        return None
    grammar = calls_grammar(
        call_format.syntax,
        use.functions,
        parallel=use.parallel,
        otherwise=otherwise,
        thought=thought,
        special=special,
    )
    if asked is not None and otherwise == "answer":
        return Composed(grammar, asked).guidance
    return Guidance("lark", grammar)
