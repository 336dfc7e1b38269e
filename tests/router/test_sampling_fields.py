"""Requests as clients write them, and the parameters that come of them."""

import msgspec
import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import ask
from isthmus.wire.sampler_lists import KOBOLD_ORDER, kobold_order
from isthmus.wire.sampling import DEFAULT_ORDER, SamplingParams
from isthmus.wire.sampling_table import ALIASES, HIDDEN, TABLE


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
        ({"dynatemp_range": 2, "temperature": 0.5, "dynatemp_min": 0, "dynatemp_max": 2.5}, (0.0, 2.5)),
        ({"dynatemp_range": None, "dynamic_temperature": None, "dynatemp_max": 2}, (0.0, 2.0)),
        ({"min_temp": 0.5, "max_temp": 2}, (0.5, 2.0)),
        ({"dynamic_temperature": True, "dynatemp_range": 0}, (0.0, 0.0)),
        ({"dynamic_temperature": True, "dynatemp_low": 0, "dynatemp_high": 0}, (0.0, 0.0)),
        ({}, (0.0, 0.0)),
    ],
)
def test_dynamic_temperature(body, expected):
    params = completion(**body)
    assert (params.dynatemp_min, params.dynatemp_max) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sent", "breakers"),
    [
        ([""], ()),
        ("", ()),
        (["a", ""], ("a",)),
        ('["\\n", ":"]', ("\n", ":")),
        ('"\\n", ":", ","', ("\n", ":", ",")),
        ("a, b,", ("a", "b")),
    ],
)
def test_dry_breakers_as_input_fields_make_them(sent, breakers):
    assert completion(dry_sequence_breakers=sent).dry_sequence_breakers == breakers


def test_kobolds_defaults():
    params = params_of("/api/v1/generate", {})
    assert params.sampler_priority == kobold_order(KOBOLD_ORDER)
    assert (params.repetition_penalty_range, params.dry_range, params.dry_sequence_breakers) == (320, 320, ())
    other = params_of("/api/v1/generate", {"sampler_order": [0, 1, 2, 3, 4, 5, 6], "rep_pen_range": 64})
    assert other.sampler_priority == kobold_order([0, 1, 2, 3, 4, 5, 6])
    assert other.repetition_penalty_range == 64


@pytest.mark.parametrize("path", ["/v1/completions", "/api/v1/generate"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"num_speculative_tokens": None}, None),
        ({"num_speculative_tokens": 0}, 0),
        ({"num_speculative_tokens": 16}, 16),
    ],
)
def test_a_request_may_limit_speculation_on_both_apis(path, body, expected):
    assert params_of(path, body).num_speculative_tokens == expected


def test_neutral_values_of_all_samplers_are_accepted():
    neutral = {f.name: f.default for f in msgspec.structs.fields(SamplingParams)}
    for name in ("guidance", "max_tokens", "logprobs", "prompt_logprobs", "logprobs_mode"):
        del neutral[name]
    neutral = {name: {} if default is msgspec.NODEFAULT else default for name, default in neutral.items()}
    assert msgspec.structs.replace(completion(**neutral), seed=-1, max_tokens=None) == SamplingParams()


@pytest.mark.parametrize("path", ["/v1/completions", "/api/v1/generate"])
def test_sliders_that_begin_at_0_send_what_keeps_one_token(path):
    params = params_of(path, {"temperature": 0, "top_k": 1, "top_p": 0, "typical": 0, "tfs": 0})
    assert (params.top_p, params.typical_p, params.tfs) == (0, 0, 0)


def test_the_table_is_served():
    reply = ask(FakeCore(), "GET", "/v1/samplers").json()
    table = {one["name"]: one for one in reply["data"]}
    assert table.keys() == TABLE.keys()
    assert table["min_p"] == {
        "name": "min_p",
        "kind": "number",
        "group": "truncation",
        "help": "keep tokens with at least min_p times the largest probability",
        "neutral": 0.0,
        "minimum": 0,
        "maximum": 1,
        "slider": {"minimum": 0, "maximum": 1, "step": 0.01},
        "defaults": {"openai": 0.0, "kobold": 0.0},
    }
    assert table["nsigma"]["aliases"] == ["top_n_sigma"]
    assert table["temperature"]["defaults"] == {"openai": 1.0, "kobold": 0.7}
    assert table["sampler_priority"]["defaults"]["kobold"] == list(kobold_order(KOBOLD_ORDER))
    assert reply["order"]["names"]["ours"] == list(DEFAULT_ORDER)
    assert reply["order"]["kobold_ids"]["0"] == ["top_k"]


@pytest.mark.parametrize("path", ["/v1/completions", "/api/v1/generate"])
def test_the_defaults_that_the_table_tells_are_those_that_requests_get(path):
    reply = ask(FakeCore(), "GET", "/v1/samplers").json()
    api = "kobold" if path.startswith("/api") else "openai"
    told = {one["name"]: one["defaults"][api] for one in reply["data"] if one["name"] not in ("seed", "max_tokens")}
    params = msgspec.json.decode(msgspec.json.encode(params_of(path, {})))
    if api == "openai":
        told["sampler_priority"] = []  # the order that is written so
    neutral = {one["name"]: one["neutral"] for one in reply["data"]}
    assert {name: params.get(name, neutral[name]) for name in told} == told


def test_temperature_last_moves_it_in_a_routes_own_order():
    order = params_of("/api/v1/generate", {"temperature_last": True}).sampler_priority
    assert order == (*(step for step in kobold_order(KOBOLD_ORDER) if step != "temperature"), "temperature")
    own = params_of("/api/v1/generate", {"temperature_last": True, "sampler_order": list(KOBOLD_ORDER)})
    assert own.sampler_priority == kobold_order(KOBOLD_ORDER)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"top_p": 1.5}, "top_p: must be a number from 0 to 1"),
        ({"typ_p": -0.1}, "typ_p: must be a number from 0 to 1"),
        ({"dynatemp_exponent": 0}, "dynatemp_exponent: must be a number above 0 and at most 100"),
        ({"top_k": 2**70}, f"top_k: must be a whole number from -1 to {2**31 - 1}"),
        ({"top_k": 2.5}, "top_k: expected `int`, got `float`"),
        ({"mirostat": 3}, "mirostat: must be a whole number from 0 to 2"),
        ({"num_speculative_tokens": 17}, "num_speculative_tokens: must be a whole number from 0 to 16"),
        ({"num_speculative_tokens": -1}, "num_speculative_tokens: must be a whole number from 0 to 16"),
        ({"num_speculative_tokens": False}, "num_speculative_tokens: expected `int | null`, got `bool`"),
        ({"mirostat": "2"}, "mirostat: expected `int`, got `str`"),
        ({"temperature_last": 1}, "temperature_last: expected `bool`, got `int`"),
        ({"eps_cutoff": 10_001}, "eps_cutoff: must be from 0 to 1, or in units of 0.0001 above 1 and at most 10000"),
        ({"dry_allowed_length": 2**40}, f"dry_allowed_length: must be a whole number from 0 to {2**31 - 1}"),
        ({"allowed_token_ids": [2**70]}, "allowed_token_ids[0]: expected `int` <= 2147483647"),
        ({"allowed_token_ids": [5, 300]}, "allowed_token_ids: the model has no token 300"),
        ({"custom_token_bans": "5,300"}, "custom_token_bans: the model has no token 300"),
        ({"token_ban_ranges": [[[300], 0, 2]]}, "token_ban_ranges: the model has no token 300"),
        ({"allowed_token_ids": [5], "custom_token_bans": [5]}, "custom_token_bans: leaves no token that may come"),
        ({"dynatemp_range": 0.5, "dynatemp_low": 0.1, "max_temp": 2}, "dynatemp_range: contradicts max_temp"),
        ({"dynatemp_range": 0, "dynatemp_min": 0.1, "dynatemp_max": 2}, "dynatemp_range: contradicts dynatemp_max"),
        ({"dynatemp_range": 1, "temperature": 99.5}, "dynatemp_range: temperature + range must be at most 100"),
        ({"dynamic_temperature": True}, "dynamic_temperature: needs dynatemp_min and dynatemp_max, or dynatemp_range"),
    ],
)
def test_refusals_say_the_range(body, message):
    core = FakeCore()
    reply = ask(core, "POST", "/v1/completions", json={"prompt": "hi", **body})
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, message)
    assert not core.streams


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/api/v1/generate"])
def test_openapi_describes_every_parameter_and_its_other_names(path):
    schema = ask(FakeCore(), "GET", "/openapi.json").json()
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    properties = body["properties"]
    assert properties.keys() >= {*TABLE, *ALIASES, "dynatemp_range", "n", "guided_regex"} - HIDDEN
    assert not properties.keys() & HIDDEN
    assert (properties["typ_p"]["minimum"], properties["typ_p"]["description"]) == (0, "the same as typical_p")
    forms = [form.get("description") for form in properties["custom_token_bans"]["anyOf"]]
    assert "ids between commas" in forms
    assert properties["temperature"]["default"] == (0.7 if path.startswith("/api") else 1.0)
