"""Calls of tools in what models write: the same however the text is cut, and nothing lost."""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
from isthmus.text.tool_calls.formats import FORMATS, detect_format
from isthmus.text.tool_calls.parser import CallParser
from isthmus.text.tool_calls.source import Arguments, CallBegin, Content, Event

SCHEMAS: dict[str, dict[str, Any]] = {
    "f": {"properties": {"a": {"type": "integer"}, "s": {"type": "string"}, "u": {"type": ["string", "null"]}}},
    "g": {},
}
Calls = list[tuple[str, str]]
F, G = ("f", '{"a": 1}'), ("g", "{}")
FENCED = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
XML = "<tool_call>\n<function={}>\n{}</function>\n</tool_call>"
PARAMETER = "<parameter={}>\n{}\n</parameter>\n"
V31 = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"

# format, output, content, calls
READ: list[tuple[str, str, str, Calls]] = [
    ("hermes", "plain text\n", "plain text\n", []),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [F]),
    ("hermes", 'Hm.\n<tool_call>{"name":"f","arguments":{"a": 1}}</tool_call>\nEnd', "Hm.\nEnd", [F]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [F]),
    ("hermes", '<tool_call>{"id": "1", "name": "f", "arguments": {"a": 1}, "type": [{}]}</tool_call>', "", [F]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [F]),
    ("hermes", '<tool_call>{"name": "g"}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": null}', "", [G, G]),
    ("hermes", '<tool_call>{"name": "new", "arguments": {}}</tool_call>', "", [("new", "{}")]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"s": "</tool_call> \\" }é"}}</tool_call>',
        "",
        [("f", '{"s": "</tool_call> \\" }é"}')],
    ),
    ("llama3_json", 'A {"name": "f", "parameters": {}}', 'A {"name": "f", "parameters": {}}', []),
    ("llama3_json", ' {"name": "f", "parameters": {"a": 1}}', "", [F]),
    ("llama3_json", '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', "", [F, G]),
    ("llama3_json", 'Now <|python_tag|>{"name": "f", "parameters": {"a": 1}}', "Now", [F]),
    ("llama3_json", '{"name": "Bob", "parameters": {}}', '{"name": "Bob", "parameters": {}}', []),
    ("llama3_json", '<|python_tag|>f.call(a="x")', '<|python_tag|>f.call(a="x")', []),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', "", [F, G]),
    ("mistral", 'Yes.[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', "Yes.", [F]),
    ("mistral_args", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{}', "", [F, G]),
    ("mistral_args", '[TOOL_CALLS]f{"a": 1}', "", [F]),
    ("pythonic", "[f(a=1), g()]", "", [F, G]),
    ("pythonic", "<|python_start|>[f(a=1)]<|python_end|>", "", [F]),
    ("pythonic", "[1, 2]", "[1, 2]", []),
    ("pythonic", "[h(a=1)]", "[h(a=1)]", []),
    (
        "pythonic",
        """[f(s='it\\'s, ")', t=(True, None), u={"k": [1.5, "\\d"]}, v=null)]""",
        "",
        [("f", '{"s": "it\'s, \\")", "t": [true, null], "u": {"k": [1.5, "\\\\d"]}, "v": null}')],
    ),
    ("qwen3_coder", XML.format("f", PARAMETER.format("a", 1)), "", [F]),
    ("qwen3_coder", "Hm.\n" + XML.format("f", PARAMETER.format("a", 1)) + "\n" + XML.format("g", ""), "Hm.", [F, G]),
    (
        "qwen3_coder",
        XML.format(
            "f", PARAMETER.format("s", '12\n "<b>"\n') + PARAMETER.format("a", "x") + PARAMETER.format("n", "[1]")
        ),
        "",
        [("f", '{"s": "12\\n \\"<b>\\"\\n", "a": "x", "n": [1]}')],
    ),
    (
        "qwen3_coder",
        XML.format("f", PARAMETER.format("u", "null") + "<parameter=s>é</parameter>"),
        "",
        [("f", '{"u": null, "s": "é"}')],
    ),
    ("qwen3_coder", "<tool_call><function=g></function>", "", [G]),
    (
        "deepseek_v3",
        "Ok<｜tool▁calls▁begin｜>" + FENCED.format(*F) + "\n" + FENCED.format(*G) + "<｜tool▁calls▁end｜>",
        "Ok",
        [F, G],
    ),
    ("deepseek_v31", "<｜tool▁calls▁begin｜>" + V31.format(*F) + V31.format(*G) + "<｜tool▁calls▁end｜>", "", [F, G]),
]
# No calls, all of it content
KEPT = [
    ("hermes", "half a <tool_cal"),
    ("hermes", "<tool_call>"),
    ("hermes", "<tool_call>{oops}</tool_call>"),
    ("hermes", "<tool_call>{'name': 'f'}</tool_call>"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {oops}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": [1}, "name": "f"}</tool_call>'),
    ("llama3_json", '{"answer": 42}'),
    ("llama3_json", '{"name": "f", "param'),
    ("mistral", "[TOOL_CALLS] nothing here"),
    ("mistral", "[TOOL_CALLS] [1, 2]"),
    ("mistral_args", "[TOOL_CALLS]f[ARGS]oops"),
    ("pythonic", "[f(a=b)]"),
    ("pythonic", "[f(a={1, 2})]"),
    ("pythonic", "[f(a=1"),
    ("pythonic", "[f(1)]"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function"),
    ("qwen3_coder", "<tool_call>{}</tool_call>"),
    ("qwen3_coder", "<tool_call><function=f>oops"),
    ("qwen3_coder", "<tool_call><function=f><parameter=a>1"),
]
# Calls whose arguments go wrong after their first key: they end there, and the rest is content
CUT: list[tuple[str, str, str, Calls]] = [
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call> tail', "tail", [("f", '{"a": 1')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ?}}', "?}}", [("f", '{"a": ')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x', "", [("f", '{"a": "x')]),
    ("mistral_args", '[TOOL_CALLS]f[ARGS]{"a": [1', "", [("f", '{"a": [1')]),
    ("pythonic", "[f(a=1, b=c)]", ", b=c)]", [F]),
    ("qwen3_coder", "<tool_call><function=f><parameter=a>1</parameter>oops", "oops", [F]),
    ("llama3_json", '{"name": "g"}; {"x": 1}', '; {"x": 1}', [G]),
]
BEGUN, BEGUN_31 = '<tool_call>{"name": "f", "arguments": {"a": 1}}', "<｜tool▁calls▁begin｜>" + V31.format(*F)
# Half a marker after a call, where no more could come
HALF: list[tuple[str, str, str, Calls]] = [
    ("hermes", BEGUN + "\n</tool_ca", "", [F]),
    ("hermes", BEGUN + "</tool_call>\n<tool_ca", "", [F]),
    ("qwen3_coder", XML.format("f", PARAMETER.format("a", 1))[:-3], "", [F]),
    ("qwen3_coder", XML.format("f", PARAMETER.format("a", 1)).partition("nction>\n</tool")[0], "", [F]),
    ("pythonic", "<|python_start|>[f(a=1)]<|python_e", "", [F]),
    ("deepseek_v31", BEGUN_31[:-3], "", [F]),
    ("deepseek_v31", BEGUN_31 + "<｜tool▁calls▁e", "", [F]),
]
ALL = [*READ, *CUT, *HALF, *((name, text, text, []) for name, text in KEPT)]


def folded(events: Sequence[Event]) -> tuple[str, Calls]:
    content, calls = "", list[list[str]]()
    for event in events:
        match event:
            case Content(text):
                content += text
            case CallBegin(name):
                calls.append([name, ""])
            case Arguments(text):
                calls[-1][1] += text
    return content, [(name, arguments) for name, arguments in calls]


def parse(name: str, pieces: Sequence[str]) -> tuple[str, Calls]:
    parser = CallParser(FORMATS[name].read, SCHEMAS)
    events = [event for piece in pieces for event in parser.push(piece)]
    return folded([*events, *parser.flush()])


def cuts(text: str) -> Iterator[list[str]]:
    """One by one, in two at every place, and at random."""
    yield list(text)
    yield from ([text[:at], text[at:]] for at in range(len(text)))
    draw = random.Random(text)
    for _ in range(30):
        places = sorted(draw.sample(range(len(text) + 1), min(len(text), draw.randint(1, 8))))
        yield [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize(("name", "text", "content", "calls"), ALL, ids=[f"{row[0]} {row[1][:40]}" for row in ALL])
def test_outputs_are_read(name: str, text: str, content: str, calls: Calls) -> None:
    assert parse(name, [text]) == (content, calls)


@pytest.mark.parametrize("name", FORMATS)
def test_however_they_are_cut(name: str) -> None:
    for text, content, calls in [row[1:] for row in ALL if row[0] == name]:
        for pieces in cuts(text):
            assert parse(name, pieces) == (content, calls), pieces


@pytest.mark.parametrize("name", FORMATS)
def test_random_markup_is_read_the_same_however_it_is_cut(name: str) -> None:
    """Scraps of the format in any order: what is no call comes back, in order, without its white space."""
    draw = random.Random(7)
    scraps = [row[1][:n] for row in ALL if row[0] == name for n in (3, 9, 400)]
    scraps += [*FORMATS[name].markers, '{"name": "f", ', '"arguments": {"a": ', "[", "}", '"', "\\", "\n", "x", "f(a="]
    for _ in range(150):
        text = "".join(draw.choices(scraps, k=6))
        content, calls = parse(name, [text])
        assert all(parse(name, pieces) == (content, calls) for pieces in islice(cuts(text), 12))
        assert calls or content == text


def test_arguments_come_as_they_are_written() -> None:
    parser = CallParser(FORMATS["hermes"].read, SCHEMAS)
    assert parser.push('Hm. <tool_call>{"name": "f", "arguments":') == [Content("Hm.")]
    assert folded([CallBegin(""), *parser.push(' {"city": "Par')][1:]) == ("", [("f", '{"city": "Par')])
    assert parser.push('is"') == [Arguments("is"), Arguments('"')]


def test_a_long_argument_costs_no_more_a_character() -> None:
    """What has been read is dropped."""
    parser = CallParser(FORMATS["hermes"].read, SCHEMAS)
    parser.push('<tool_call>{"name": "f", "arguments": {"a": "')
    for _ in range(20_000):
        parser.push("x")
    assert len(parser._source._text) < 100


TEMPLATES = [
    ("{{ '<tool_call>' }}", "hermes"),
    ("{{ '<tool_call><function=' }}", "qwen3_coder"),
    ('Respond in the format {"name": function name, "parameters": dictionary}', "llama3_json"),
    ("<|python_tag|>", "llama3_json"),
    ("[AVAILABLE_TOOLS][TOOL_CALLS] [", "mistral"),
    ("[TOOL_CALLS]x[ARGS]", "mistral_args"),
    ("<|python_start|>", "pythonic"),
    ("<｜tool▁calls▁begin｜>```json", "deepseek_v3"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v31"),
    ("<|im_start|>", None),
]


@pytest.mark.parametrize(("template", "name"), TEMPLATES)
def test_the_format_is_told_by_the_template(template: str, name: str | None) -> None:
    found = detect_format(template)
    assert (found and found.name) == name


def test_ids_are_those_that_templates_take() -> None:
    assert len({FORMATS["hermes"].make_id() for _ in range(100)}) == 100
    assert all(len(FORMATS["mistral"].make_id()) == 9 for _ in range(100))
    assert json.loads(FORMATS["hermes"].syntax.begin('a"b').removeprefix("<tool_call>\n") + "{}}")["name"] == 'a"b'
