from dataclasses import replace
from typing import Any, get_args

import pytest
from isthmus.engine.speculation_config import Method, SpeculationConfig
from isthmus.launch.arguments import flags
from isthmus.launch.config import SpeculationOptions
from isthmus.launch.resolve import ConfigError
from isthmus.launch.speculation import resolve_speculation, to_options, with_layers


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SpeculationConfig("off", 4)),
        ({"speculative_method": "off"}, SpeculationConfig("off", 4)),
        ({"speculative_method": "ngram"}, SpeculationConfig("ngram", 4)),
        ({"speculative_method": "ngram", "num_speculative_tokens": 1}, SpeculationConfig("ngram", 1)),
        ({"speculative_model": "small"}, SpeculationConfig("draft", 4, "small")),
        ({"speculative_method": "eagle", "speculative_model": "head"}, SpeculationConfig("eagle", 4, "head")),
        ({"speculative_method": "first-layers"}, SpeculationConfig("first-layers", 4)),
        (
            {"speculative_method": "first-layers", "speculative_layers": 5},
            SpeculationConfig("first-layers", 4, None, 5),
        ),
    ],
)
def test_flags_say_who_guesses(options: dict[str, Any], expected: SpeculationConfig) -> None:
    assert resolve_speculation(SpeculationOptions(**options)) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speculative_method": "draft"}, "--speculative-method draft needs a --speculative-model"),
        ({"speculative_method": "eagle"}, "--speculative-method eagle needs a --speculative-model"),
        ({"speculative_model": ""}, "--speculative-method draft needs a --speculative-model"),
        (
            {"speculative_method": "ngram", "speculative_model": "small"},
            "--speculative-model goes with --speculative-method draft or eagle, not with ngram",
        ),
        ({"speculative_method": "off", "speculative_model": "small"}, "--speculative-model goes with .*, not with off"),
        (
            {"speculative_method": "first-layers", "speculative_model": "small"},
            "--speculative-model goes with .*, not with first-layers",
        ),
        (
            {"speculative_layers": 5},
            "--speculative-layers goes with --speculative-method first-layers, not with off",
        ),
        (
            {"speculative_model": "small", "speculative_layers": 5},
            "--speculative-layers goes with --speculative-method first-layers, not with draft",
        ),
        ({"num_speculative_tokens": 4}, "--num-speculative-tokens goes with .* first-layers .*, not with off"),
    ],
)
def test_a_flag_that_contradicts_another_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_speculation(SpeculationOptions(**options))


def test_every_method_can_be_asked_for() -> None:
    (method,) = [flag for flag in flags(SpeculationOptions) if flag.text == "--speculative-method"]
    assert get_args(method.type) == get_args(Method)


def test_help_says_the_default_number_of_tokens() -> None:
    (tokens,) = [flag for flag in flags(SpeculationOptions) if flag.text == "--num-speculative-tokens"]
    assert f"default: {SpeculationConfig().num_tokens}" in tokens.meta["help"]


@pytest.mark.parametrize(("asked", "layers", "expected"), [(None, 30, 10), (None, 2, 1), (29, 30, 29), (1, 2, 1)])
def test_a_third_of_the_layers_guess_unless_told_otherwise(asked: int | None, layers: int, expected: int) -> None:
    assert with_layers(SpeculationConfig("first-layers", num_layers=asked), layers).num_layers == expected


@pytest.mark.parametrize(("asked", "layers"), [(30, 30), (31, 30), (None, 1)])
def test_as_many_layers_as_the_model_has_guess_nothing(asked: int | None, layers: int) -> None:
    with pytest.raises(ConfigError, match=f"must be fewer than the model's {layers} layers"):
        with_layers(SpeculationConfig("first-layers", num_layers=asked), layers)


def test_other_methods_have_no_layers() -> None:
    assert with_layers(SpeculationConfig("ngram"), 1) == SpeculationConfig("ngram")


@pytest.mark.parametrize(
    "speculation",
    [
        SpeculationConfig(),
        SpeculationConfig("ngram"),
        SpeculationConfig("draft", 4, "small"),
        SpeculationConfig("eagle", 2, "head"),
        SpeculationConfig("first-layers", 16, None, 10),
    ],
)
def test_flags_made_from_it_mean_the_same(speculation: SpeculationConfig) -> None:
    assert resolve_speculation(to_options(speculation)) == speculation


def test_what_is_off_needs_no_flags() -> None:
    assert to_options(replace(SpeculationConfig(), num_tokens=7)) == SpeculationOptions()
