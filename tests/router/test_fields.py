import msgspec
import pytest
from isthmus.router.errors import ApiError
from isthmus.router.fields import convert, take_apart


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
