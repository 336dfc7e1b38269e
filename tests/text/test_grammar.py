"""Every kind of guidance: what its grammar lets through, where it may end, and what is refused with which sentence."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from isthmus.text.grammar import MAX_SPEC_CHARS, GrammarError, grammar_kind
from isthmus.text.grammar_compiler import MAX_FORCED, GrammarCompiler, Vocabulary, next_tokens
from isthmus.text.grammar_masks import allows
from isthmus.wire.sampling import Guidance

EOS, CALL = 256, 257
"""An end of sequence, and a special token that is spelt <|call|>; all other ids are single bytes."""
NUM_TOKENS = 258


def byte_vocabulary(eos_ids: Sequence[int] = (EOS,)) -> Vocabulary:
    tokens = [bytes([i]) for i in range(256)] + [b"<|eos|>", b"<|call|>"]
    return Vocabulary(tokens, special_ids=[EOS, CALL], eos_ids=eos_ids, encode=lambda text: list(text.encode()))


COMPILER = GrammarCompiler(byte_vocabulary)


def spell(text: str) -> list[int]:
    head, *rest = text.split("<|call|>")
    return [*head.encode(), *(i for part in rest for i in (CALL, *part.encode()))]


def accepts(guidance: Guidance, text: str) -> bool:
    """Whether the whole text is an output, by the masks that a sampler would see."""
    matcher = COMPILER.compile(guidance).deep_copy()
    for token in [*spell(text), EOS]:
        allowed = np.unpackbits(next_tokens(matcher, NUM_TOKENS).view(np.uint8), bitorder="little")
        if not allowed[token]:
            return False
        assert matcher.consume_token(token)
    return True


def lark(rules: str) -> Guidance:
    return Guidance("lark", rules)


POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x"]}
TAG = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<f=add>", "schema": {"enum": [1, 2]}, "end": "</f>"},
        {"begin": "<f=neg>", "schema": {"type": "boolean"}, "end": "</f>"},
        {"begin": "<|call|>now", "schema": {"const": 0}, "end": "<|call|>"},
    ],
    "triggers": ["<f=", "<|call|>"],
}
WEIRD = ['a"b', "c\\d", "e\nf", "\U0001f600", "\x01", "/x/", "é", "é|è", ""]


@pytest.mark.parametrize(
    ("guidance", "good", "bad"),
    [
        (Guidance("regex", r"\d{2}-[a-c]+"), ["12-a", "00-abc"], ["1-a", "12-", "12-abcd", "x12-a", "١٢-a"]),
        (Guidance("regex", r"^a/b$"), ["a/b"], ["a/", "a/bb"]),
        (Guidance("regex", ""), [""], ["a"]),
        (Guidance("choice", json.dumps(WEIRD)), WEIRD, ["a", "c\\\\d", "/x", "no"]),
        (Guidance("json_object", ""), ['{"a": [1, null]}', "{}"], ["[1]", "1", '{"a"}', "{}x"]),
        (Guidance("json_schema", json.dumps(POINT)), ['{"x": 1}', '{"x":1,\n "y":-2}'], ['{"y": 1}', '{"x": "1"}']),
        (Guidance("json_schema", "{}"), ["1", "[]", '"a"'], ["", "a"]),
        (lark('start: greeting " " NAME\ngreeting: "hi" | "ho"\nNAME: /[a-z]+/'), ["hi bob", "ho x"], ["hi ", "hx"]),
        (lark('start: "a" start "b" | "ab"'), ["ab", "aaabbb"], ["aab", "abb"]),
        (Guidance("gbnf", 'root ::= [0-9]+ ("," [0-9]+)*'), ["1,22,3"], ["1,", ",1", "a"]),
        (
            Guidance("gbnf", 'root ::= item{2,3} # some\nitem ::= "x" | yItem\nyItem ::= "yy"?'),
            ["xx", "xyyx"],
            ["xxxx"],
        ),
        (
            Guidance("structural_tag", json.dumps(TAG)),
            ["", "text < f", "x<f=add>1</f>y<f=neg>true</f>"],
            ["<f=add>3</f>"],
        ),
        (Guidance("structural_tag", json.dumps(TAG)), ["a<|call|>now0<|call|>b"], ["<f=sub>", "<|call|>1", "<f=add>1"]),
    ],
    ids=lambda value: f"{value.kind} {value.spec[:30]}" if isinstance(value, Guidance) else None,
)
def test_outputs(guidance: Guidance, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not accepts(guidance, text)] == []
    assert [text for text in bad if accepts(guidance, text)] == []


DEEP_GBNF = "root ::= " + "(" * 3000 + '"a"' + ")" * 3000


@pytest.mark.parametrize(
    ("guidance", "reason"),
    [
        (Guidance("regex", "(a"), "unclosed group"),
        (Guidance("regex", "a(?=b)"), "look-around"),
        (Guidance("json_schema", "{"), "not JSON"),
        (Guidance("json_schema", "[1]"), "not a JSON object"),
        (Guidance("json_schema", '{"type": "nothing"}'), "nothing"),
        (Guidance("json_schema", '{"not": {"type": "string"}}'), "not"),
        (Guidance("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'), "minimum"),
        (Guidance("json_schema", '{"a": ' * 5000 + "1" + "}" * 5000), "not JSON|recursion|deep"),
        (lark("start: nowhere"), "nowhere"),
        (lark('start "a"'), "Expected token"),
        (lark('begin: "a"'), "start"),
        (Guidance("gbnf", 'start ::= "a"'), "root"),
        (Guidance("gbnf", "root ::= nowhere"), "nowhere"),
        (Guidance("gbnf", 'root ::= "a'), "end of input"),
        (Guidance("gbnf", DEEP_GBNF), "nested too deeply"),
        (Guidance("structural_tag", '{"structures": [], "triggers": ["a"]}'), "no structures"),
        (Guidance("structural_tag", '{"triggers": ["a"]}'), "structures"),
        (
            Guidance("structural_tag", '{"structures": [{"begin": "b", "schema": {}, "end": ""}], "triggers": ["a"]}'),
            "none of the triggers",
        ),
        (Guidance("regex", "a" * (MAX_SPEC_CHARS + 1)), "characters"),
        (lark("start: A\nA: /a/ & /b/"), "no output can match it"),
    ],
    ids=lambda value: f"{value.kind} {value.spec[:30]}" if isinstance(value, Guidance) else None,
)
def test_refusals(guidance: Guidance, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as refusal:
        COMPILER.compile(guidance)
    assert len(str(refusal.value)) <= 400


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(
            "json_schema",
            json.dumps({"allOf": [{"type": "string", "pattern": f".*{c}.{{15}}.*"} for c in "abcdefghijkl"]}),
        ),
    ],
    ids=["allOf"],
)
def test_too_much_work_is_refused(guidance: Guidance) -> None:
    with pytest.raises(GrammarError):
        COMPILER.compile(guidance)


def test_a_text_that_is_forced_is_cut_once() -> None:
    """Though it comes again and again; a long one is not remembered."""
    cut: list[str] = []

    def encode(text: str) -> list[int]:
        cut.append(text)
        return list(text.encode())

    tokens = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    words = Vocabulary(tokens, special_ids=[256], eos_ids=[256], encode=encode)
    compiled = GrammarCompiler(lambda: words).compile(Guidance("regex", '("name": [0-9]; ?){9}'))
    for _ in range(2):
        matcher = compiled.deep_copy()
        for token in b'"name": 1; "name": 2; "name": 3':
            assert allows(next_tokens(matcher, len(tokens)), token)
            matcher.consume_tokens([token])
    asked = [text for text in cut if "name" in text]
    assert asked
    assert len(asked) == len(set(asked))
    for _ in range(2):
        words(b"x" * (MAX_FORCED + 1))
    assert cut[-2:] == ["x" * (MAX_FORCED + 1)] * 2


def test_a_model_without_end_of_sequence() -> None:
    compiler = GrammarCompiler(lambda: byte_vocabulary(eos_ids=()))
    matcher = compiler.compile(Guidance("regex", "ab?")).deep_copy()
    assert matcher.consume_token(ord("a"))
    allowed = np.unpackbits(next_tokens(matcher, NUM_TOKENS + 1).view(np.uint8), bitorder="little")[:NUM_TOKENS]
    assert allowed.nonzero()[0].tolist() == [ord("b")]
    assert matcher.is_accepting()


def test_grammar_kind() -> None:
    assert grammar_kind('start: "a"') == "lark"
    assert grammar_kind('%llguidance {}\nstart: "a"') == "lark"
    assert grammar_kind('root ::= "a"') == "gbnf"
