import pytest
from isthmus.router.errors import ApiError
from isthmus.router.fields import take_apart


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
