"""The table says all of the struct, and the page says all of the table."""

from pathlib import Path

import isthmus
import msgspec
import pytest
from isthmus.wire.sampling import SamplingParams
from isthmus.wire.sampling_page import page
from isthmus.wire.sampling_table import ALIASES, HIDDEN, TABLE, parameters

PAGE = Path(isthmus.__path__[0]) / "docs" / "samplers.md"


def test_every_parameter_is_there_with_its_help() -> None:
    names = [one.name for one in parameters()]
    assert set(names) == {field.name for field in msgspec.structs.fields(SamplingParams)} - HIDDEN
    assert len(set(names)) == len(names)
    assert all(one.help and one.group for one in parameters())


def test_other_names_are_of_one_parameter_each() -> None:
    aliases = [alias for one in parameters() for alias in one.aliases]
    assert len(set(aliases)) == len(aliases)
    assert not TABLE.keys() & set(aliases)
    assert ALIASES["typ_p"] == "typical_p"


@pytest.mark.parametrize("name", [one.name for one in parameters() if one.kind in ("number", "integer")])
def test_numbers_have_a_range_that_the_wire_can_carry(name: str) -> None:
    one = TABLE[name]
    low = one.minimum if one.exclusive_minimum is None else one.exclusive_minimum
    assert low is not None
    assert one.maximum is not None
    assert -(2**63) <= low < one.maximum < 2**63
    assert one.neutral is None or low <= one.neutral <= one.maximum
    if one.slider is not None:
        assert low <= one.slider.minimum < one.slider.maximum <= one.maximum
        assert 0 < one.slider.step <= one.slider.maximum - one.slider.minimum


def test_ranges_in_words() -> None:
    assert TABLE["top_p"].range == "a number from 0 to 1"
    assert TABLE["dynatemp_exponent"].range == "a number above 0 and at most 100"
    assert TABLE["mirostat_mode"].range == "a whole number from 0 to 2"
    assert TABLE["bad_words"].range == ""


def test_kinds_and_neutral_values() -> None:
    assert (TABLE["max_tokens"].kind, TABLE["max_tokens"].neutral) == ("integer", None)
    speculative = TABLE["num_speculative_tokens"]
    assert (speculative.kind, speculative.neutral, speculative.range) == (
        "integer",
        None,
        "a whole number from 0 to 16",
    )
    assert (TABLE["dry_sequence_breakers"].kind, TABLE["dry_sequence_breakers"].neutral) == ("list", list('\n:"*'))
    assert (TABLE["logit_bias"].kind, TABLE["logit_bias"].neutral) == ("object", {})


def test_the_page_is_up_to_date() -> None:
    """If not: python -m isthmus.wire.sampling_page > docs/samplers.md"""
    assert PAGE.read_text() == page()
