"""The table says all of the struct, and the page says all of the table."""

from pathlib import Path

import isthmus
import msgspec
from isthmus.wire.sampling import ALIASES, SamplingParams
from isthmus.wire.sampling_table import HIDDEN, markdown, parameters

PAGE = Path(isthmus.__path__[0]) / "docs" / "samplers.md"


def test_every_parameter_is_there_with_its_help() -> None:
    names = [one.name for one in parameters()]
    assert set(names) == {field.name for field in msgspec.structs.fields(SamplingParams)} - HIDDEN
    assert all(one.help for one in parameters())
    assert {alias: one.name for one in parameters() for alias in one.aliases} == ALIASES


def test_ranges_and_defaults() -> None:
    table = {one.name: one for one in parameters()}
    assert (table["top_p"].exclusive_minimum, table["top_p"].maximum, table["top_p"].default) == (0, 1, 1.0)
    assert (table["max_tokens"].kind, table["max_tokens"].default) == ("integer", None)
    assert (table["dry_sequence_breakers"].kind, table["dry_sequence_breakers"].default) == ("list", list('\n:"*'))
    assert (table["logit_bias"].kind, table["temperature_last"].kind) == ("object", "boolean")
    assert "typ_p" in table["typical_p"].aliases


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == markdown()
