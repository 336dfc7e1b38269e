"""Requests as clients write them, and the parameters that come of them."""

import msgspec
import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import ask
from isthmus.wire.sampling import ALIASES, SamplingParams
from isthmus.wire.sampling_values import KOBOLD_ORDER, kobold_order


def params_of(path, body):
    core = FakeCore()
    reply = ask(core, "POST", path, json={"prompt": "hi", "max_tokens": 4, **body})
    assert reply.status_code == 200, reply.text
    return core.streams[0].job.params


def completion(**body):
    return params_of("/v1/completions", body)


def test_every_alias_is_its_field():
    values = {"ignore_eos": True, "banned_strings": ["x"], "sampler_priority": list(KOBOLD_ORDER), "mirostat_mode": 2}
    for alias, name in ALIASES.items():
        value = values.get(name, 1)
        other = {"dynatemp_max": 2} if name == "dynatemp_min" else {}
        fixed = {} if name == "seed" else {"seed": 5}
        assert completion(**{alias: value, **other, **fixed}) == completion(**{name: value, **other, **fixed}), alias


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"dynatemp_range": 0.5}, (0.5, 1.5)),
        ({"dynatemp_range": 2, "temperature": 0.7}, (0.0, 2.7)),
        ({"dynatemp_range": 0, "dynatemp_low": 1, "dynatemp_high": 1}, (0.0, 0.0)),
        ({"dynamic_temperature": False, "dynatemp_low": 1, "dynatemp_high": 1}, (0.0, 0.0)),
        ({"dynamic_temperature": True, "dynatemp_low": 0.5, "dynatemp_high": 2, "dynatemp_range": 0.75}, (0.5, 2.0)),
        ({"min_temp": 0.5, "max_temp": 2}, (0.5, 2.0)),
        ({}, (0.0, 0.0)),
    ],
)
def test_dynamic_temperature(body, expected):
    params = completion(**body)
    assert (params.dynatemp_min, params.dynatemp_max) == pytest.approx(expected)


def test_kobolds_defaults():
    params = params_of("/api/v1/generate", {})
    assert params.sampler_priority == kobold_order(KOBOLD_ORDER)
    assert (params.repetition_penalty_range, params.dry_range, params.dry_sequence_breakers) == (320, 320, ())
    other = params_of("/api/v1/generate", {"sampler_order": [0, 1, 2, 3, 4, 5, 6], "rep_pen_range": 64})
    assert other.sampler_priority == kobold_order([0, 1, 2, 3, 4, 5, 6])
    assert other.repetition_penalty_range == 64


def test_neutral_values_of_all_samplers_are_accepted():
    neutral = {f.name: f.default for f in msgspec.structs.fields(SamplingParams)}
    for name in ("guidance", "max_tokens", "logprobs", "prompt_logprobs", "logprobs_mode"):
        del neutral[name]
    neutral = {name: {} if default is msgspec.NODEFAULT else default for name, default in neutral.items()}
    assert msgspec.structs.replace(completion(**neutral), seed=-1, max_tokens=None) == SamplingParams()


def test_the_table_is_served():
    reply = ask(FakeCore(), "GET", "/v1/samplers")
    table = {one["name"]: one for one in reply.json()["data"]}
    assert table["min_p"] == {
        "name": "min_p",
        "kind": "number",
        "default": 0.0,
        "help": "keep tokens with at least min_p times the largest probability",
        "minimum": 0,
        "maximum": 1,
    }
    assert table["nsigma"]["aliases"] == ["top_n_sigma"]
    assert reply.json()["order"][0] == "dry"
    assert reply.json()["kobold_defaults"]["temperature"] == 0.7
