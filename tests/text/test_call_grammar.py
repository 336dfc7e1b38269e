"""The grammars of calls: what they let through is read back as calls that fit their schemas, in every format."""

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
from isthmus.text.composed import Composed
from isthmus.text.grammar_compiler import GrammarCompiler, Vocabulary, next_tokens
from isthmus.text.reasoning import STYLES, Thought
from isthmus.text.tool_calls.formats import FORMATS, CallFormat
from isthmus.text.tool_calls.grammar import Function, answer_grammar, calls_grammar
from isthmus.text.tool_calls.parser import CallParser
from isthmus.text.tool_calls.source import Arguments, CallBegin, Event
from isthmus.wire.sampling import Guidance

SPECIAL = {"[TOOL_CALLS]": 257, "[THINK]": 258, "[/THINK]": 259, "<｜tool▁sep｜>": 260}
EOS, NUM_TOKENS = 256, 261
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", 'a"é']}, "days": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTIONS = [Function("weather", WEATHER), Function("now", {"type": "object", "properties": {}})]
OPEN, UNOPENED = Thought(STYLES["qwen3"], True), Thought(STYLES["qwen3"], False)
Otherwise = Literal["nothing", "text", "answer"]


@cache
def compiler() -> GrammarCompiler:
    tokens = [bytes([i]) for i in range(256)] + [b"<|eos|>", *(text.encode() for text in SPECIAL)]
    special_ids = [EOS, *SPECIAL.values()]
    words = Vocabulary(tokens, special_ids=special_ids, eos_ids=[EOS], encode=lambda text: list(text.encode()))
    return GrammarCompiler(lambda: words)


def spell(text: str) -> list[int]:
    parts = re.split(f"({'|'.join(map(re.escape, SPECIAL))})", text)
    return [i for part in parts for i in ([SPECIAL[part]] if part in SPECIAL else part.encode())]


def guidance(
    form: CallFormat,
    *,
    functions: Sequence[Function] = FUNCTIONS,
    otherwise: Otherwise = "nothing",
    parallel: bool = True,
    thought: Thought | None = None,
) -> Guidance:
    rules = calls_grammar(
        form.syntax, functions, parallel=parallel, otherwise=otherwise, thought=thought, special=SPECIAL
    )
    return Guidance("lark", rules)


def allowed(matcher: Any) -> Any:
    return np.unpackbits(next_tokens(matcher, NUM_TOKENS).view(np.uint8), bitorder="little")


def accepts(guide: Guidance, text: str) -> bool:
    matcher = compiler().compile(guide).deep_copy()
    for token in [*spell(text), EOS]:
        if not allowed(matcher)[token]:
            return False
        assert matcher.consume_token(token)
    return True


def write(form: CallFormat, calls: Sequence[tuple[str, str]]) -> str:
    """As the grammar has it."""
    syntax = form.syntax
    each = [syntax.begin(name) + arguments + syntax.end for name, arguments in calls]
    return syntax.before + syntax.between.join(each) + syntax.after


def read(form: CallFormat, text: str) -> list[tuple[str, Any]]:
    parser = CallParser(form.read, {function.name: function.schema for function in FUNCTIONS})
    events: list[Event] = [*parser.push(text), *parser.flush()]
    assert all(isinstance(event, CallBegin | Arguments) for event in events), text
    calls: list[list[str]] = []
    for event in events:
        if isinstance(event, CallBegin):
            calls.append([event.name, ""])
        elif isinstance(event, Arguments):
            calls[-1][1] += event.text
    return [(name, json.loads(arguments)) for name, arguments in calls]


def arguments(form: CallFormat, days: str) -> str:
    if form.name == "qwen3_coder":
        return f"<parameter=city>\nParis\n</parameter>\n<parameter=days>\n{days}\n</parameter>\n"
    return f'city="Paris", days={days}' if form.name == "pythonic" else f'{{"city": "Paris", "days": {days}}}'


def none(form: CallFormat) -> str:
    return "" if form.name in ("pythonic", "qwen3_coder") else "{}"


each_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


@each_format
def test_required_calls(form: CallFormat) -> None:
    one, two = [("weather", arguments(form, "3"))], [("weather", arguments(form, "3")), ("now", none(form))]
    assert accepts(guidance(form), write(form, one))
    assert accepts(guidance(form), write(form, two))
    assert not accepts(guidance(form), write(form, [("weather", arguments(form, "500"))]))
    assert not accepts(guidance(form), write(form, [("other", none(form))]))
    assert not accepts(guidance(form), "no call")
    assert not accepts(guidance(form), "")
    assert read(form, write(form, two)) == [("weather", {"city": "Paris", "days": 3}), ("now", {})]


@each_format
def test_one_call_at_most(form: CallFormat) -> None:
    one, two = write(form, [("now", none(form))]), write(form, [("now", none(form))] * 2)
    guide = guidance(form, parallel=False)
    assert (accepts(guide, one), accepts(guide, two)) == (True, False)


@each_format
def test_whatever_is_drawn_is_a_call_that_fits(form: CallFormat) -> None:
    """Tokens at random among those the masks allow."""
    draw = random.Random(form.name)
    compiled = compiler().compile(guidance(form, parallel=False))
    for _ in range(6):
        matcher, tokens = compiled.deep_copy(), list[int]()
        while True:
            token = int(draw.choice(np.flatnonzero(allowed(matcher))))
            assert matcher.consume_token(token)
            if token == EOS:
                break
            tokens.append(token)
        texts = {token: text for text, token in SPECIAL.items()}
        text = b"".join(texts[t].encode() if t in texts else bytes([t]) for t in tokens).decode()
        [(name, given)] = read(form, text)
        if name == "weather":
            assert given["city"] in ("Paris", 'a"é')
            assert given.keys() <= {"city", "days"}
            assert 1 <= given.get("days", 1) <= 99
        else:
            assert name == "now"


@each_format
def test_free_text_or_calls_that_fit(form: CallFormat) -> None:
    guide = guidance(form, otherwise="text")
    good, bad = write(form, [("weather", arguments(form, "3"))]), write(form, [("weather", arguments(form, "500"))])
    assert [text for text in ("", "Hello.", "  1 < 2\n", good) if not accepts(guide, text)] == []
    assert not accepts(guide, bad)
    if form.syntax.trigger:
        assert accepts(guide, "Let me see.\n" + good)
        assert not accepts(guide, "Let me see.\n" + bad)


def test_calls_after_a_thought() -> None:
    form = FORMATS["hermes"]
    call = write(form, [("now", "{}")])
    opened, unopened = guidance(form, thought=OPEN), guidance(form, thought=UNOPENED)
    assert accepts(opened, "Hm, <tool_call>?\n</think>\n\n" + call)
    assert not accepts(opened, call)
    assert accepts(unopened, "<think>Hm.</think>" + call)
    assert accepts(unopened, call)
    assert not accepts(unopened, "Hm.</think>" + call)
    mistral = FORMATS["mistral"]
    call = write(mistral, [("now", "{}")])
    assert accepts(guidance(mistral, thought=Thought(STYLES["mistral"], False)), "[THINK]Hm.[/THINK]" + call)


@pytest.mark.parametrize(
    "answer",
    [Guidance("json_schema", '{"type": "integer"}'), Guidance("regex", r"\d+"), Guidance("lark", "start: /[0-9]+/")],
    ids=lambda guide: guide.kind,
)
def test_a_grammar_of_the_answer_beside_a_thought_and_calls(answer: Guidance) -> None:
    form = FORMATS["hermes"]
    call = write(form, [("now", "{}")])
    both = Composed(guidance(form, otherwise="answer").spec, answer).guidance
    assert [text for text in ("12", call) if not accepts(both, text)] == []
    assert not accepts(both, "twelve")
    after = Composed(answer_grammar(OPEN, SPECIAL), answer).guidance
    assert accepts(after, "Hm.</think>\n\n12")
    assert not accepts(after, "12")
    assert not accepts(after, "Hm.</think>\n\ntwelve")


OPTIONAL = {"properties": {"a": {"type": "null"}, "b": {"$ref": "#/$defs/b"}, "c": {"const": 1}}, "required": ["b"]}


def test_arguments_in_python_may_leave_out_what_is_optional() -> None:
    function = Function("f", {**OPTIONAL, "$defs": {"b": {"type": "boolean"}}})
    guide = guidance(FORMATS["pythonic"], functions=[function])
    good = ["[f(b=true)]", "[f(a=null, b=false)]", "[f(b=true, c=1)]", "[f(a=null, b=true, c=1)]"]
    bad = ["[f()]", "[f(a=null)]", "[f(c=1, b=true)]", "[f(b=true, )]", "[f(b=true, c=2)]"]
    assert [text for text in good if not accepts(guide, text)] == []
    assert [text for text in bad if accepts(guide, text)] == []


@pytest.mark.parametrize("schema", [{"anyOf": [{}]}, {"properties": {"not-a-name": {}}}])
def test_what_python_cannot_express_is_told(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the format of this model's calls"):
        guidance(FORMATS["pythonic"], functions=[Function("f", schema)])


def test_strings_in_markup_end_where_their_tag_does() -> None:
    schema = {"properties": {"s": {"type": "string"}, "n": {"type": "null"}}, "required": ["s"]}
    form = FORMATS["qwen3_coder"]
    guide = guidance(form, functions=[Function("f", schema)], parallel=False)
    text = '<parameter=s>\n"a"\n</parameter> <b>\n</parameter>\n'
    assert accepts(guide, form.syntax.begin("f") + text + form.syntax.end)
    assert accepts(guide, form.syntax.begin("f") + text + "<parameter=n>\nnull\n</parameter>\n" + form.syntax.end)
    assert not accepts(guide, form.syntax.begin("f") + "<parameter=n>\nnull\n</parameter>\n" + form.syntax.end)
    with pytest.raises(ValueError, match="maxLength of the string 's'"):
        guidance(form, functions=[Function("f", {"properties": {"s": {"type": "string", "maxLength": 3}}})])
