import pytest
from isthmus.wire.json_text import loads, without_lone_surrogates


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\ude00 hello", "\ufffd hello"),
        (r"hello \ud83d", "hello \ufffd"),
        (r"\uD83D\n", "\ufffd\n"),
        (r"\ud83d\u0041", "\ufffdA"),
        (r"\ud83d\ud83d\ude00\ude00", "\ufffd\U0001f600\ufffd"),
        (r"\\ud83d\ude00", "\\ud83d\ufffd"),
        (r"\\\ud83d \\ude00", "\\\ufffd \\ude00"),
        (r"\ude00\"\u00e9", '\ufffd"é'),
        (r"\ude00" + r"\n" * 5000 + r"\ude00", "\ufffd" + "\n" * 5000 + "\ufffd"),
        ("é\U0001f600", "é\U0001f600"),
    ],
)
def test_half_a_surrogate_pair_is_a_replacement_character(written: str, read: str) -> None:
    assert loads(f'{{"{written}": ["{written}"]}}') == {read: [read]}


@pytest.mark.parametrize("raw", [rb'"\ud83d\ude00"', rb'"\\ude00"', b'{"a": "\xff', rb'"\ud8', rb"\u", b"\\", b""])
def test_what_has_no_half_stays(raw: bytes) -> None:
    assert without_lone_surrogates(raw) == raw
