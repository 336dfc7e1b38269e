from typing import Any

import msgspec
import pytest
from isthmus.router.errors import ApiError
from isthmus.router.fields import convert, decode_json, take_apart
from isthmus.tests.router.edge import TOKENIZER, ask, saying
from isthmus.text.tool_calls.formats import FORMATS

HI = {"role": "user", "content": "hi"}
CALLING = {"role": "assistant", "content": None}


def test_of_two_switches_the_one_that_is_on_counts() -> None:
    for body in ({"ban_eos_token": True, "ignore_eos": False}, {"ignore_eos": True, "use_default_badwordsids": False}):
        assert take_apart(body, frozenset(), {}).sampling == {"ignore_eos": True}
    assert take_apart({"ban_eos_token": False, "ignore_eos": False}, frozenset(), {}).sampling == {"ignore_eos": False}


def test_two_values_of_one_field_must_agree() -> None:
    assert take_apart({"rep_pen": 1.1, "repetition_penalty": 1.1}, frozenset(), {}).sampling == {
        "repetition_penalty": 1.1
    }
    with pytest.raises(ApiError, match="contradicts rep_pen"):
        take_apart({"rep_pen": 1.1, "repetition_penalty": 1.2}, frozenset(), {})
    with pytest.raises(ApiError, match="contradicts"):
        take_apart({"rep_pen": 1, "repetition_penalty": True}, frozenset(), {})


class Lengths(msgspec.Struct):
    length: int
    share: float = 0.0
    other: list[int] = []


def test_a_number_without_a_fraction_is_an_integer_however_it_is_written() -> None:
    sampling = take_apart({"top_k": 40.0, "top_p": 1.0, "max_tokens": 2.5}, frozenset(), {}).sampling
    assert [type(sampling[name]) for name in ("top_k", "top_p", "max_tokens")] == [int, float, float]
    read = convert({"length": 5.0, "share": 1.0, "other": [3, 4.0]}, Lengths)
    assert (read, type(read.share)) == (Lengths(5, 1.0, [3, 4]), float)
    for wrong in (5.5, 1e300, "5", True):
        with pytest.raises(ApiError, match="length: expected `int`"):
            convert({"length": wrong}, Lengths)


def test_half_a_surrogate_pair_is_a_replacement_character() -> None:
    assert decode_json(rb'{"\ude00": "cut \ud83d"}') == {"\ufffd": "cut \ufffd"}


@pytest.mark.parametrize("rest", ["NaN", "Infinity", "1,", "[" * 5000, '"\\ud83d', '"\\ud8', '"\\uzzzz"', '"\x01"'])
def test_half_a_surrogate_pair_excuses_nothing_else(rest: str) -> None:
    with pytest.raises(ApiError, match="not valid JSON"):
        decode_json(f'{{"a": "\\ude00", "b": {rest}}}'.encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"structural_tag": r'{"structures": [{"begin": "\ude00", "schema": {}, "end": "x"}], "triggers": ["\ude00"]}'},
        {"guided_json": r'{"const": "\ud83d"}'},
        {"banned_strings": r'["\ud83d"]'},
        {"messages": [HI, {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": r'{"a": "\ud83d"}'}}]}]},
    ],
)
def test_half_a_surrogate_pair_in_json_in_a_string_is_one_too(fields: dict[str, Any]) -> None:
    core = saying("x")
    served = {"call_format": FORMATS["hermes"], "max_model_len": 2000}
    reply = ask(core, "POST", "/v1/chat/completions", json={"messages": [HI], **fields}, served_with=served)
    assert reply.status_code == 200, reply.text
    job = core.streams[0].job
    spec = "" if job.params.guidance is None else job.params.guidance.spec
    shown = " ".join([TOKENIZER.decode(job.prompt_ids), *job.params.banned_strings, spec])
    assert "\ufffd" in shown.replace(r"\ufffd", "\ufffd")
