"""What requests ask for, counted."""

from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.kobold_request import SAMPLING_DEFAULTS
from isthmus.router.request_usage import FEATURES, SAMPLERS, SETTINGS, samplers_in_use
from isthmus.tests.router.edge import http_client, run, saying
from isthmus.wire.sampling import DEFAULT_ORDER, SamplingParams
from isthmus.wire.sampling_table import TABLE
from prometheus_client.parser import text_string_to_metric_families

ON: dict[str, Any] = {
    "logit_bias": {5: 1.0},
    "sampler_priority": DEFAULT_ORDER[::-1],
    "temperature_last": True,
    "token_ban_ranges": (((1,), 0, 1),),
    **dict.fromkeys(("allowed_token_ids", "custom_token_bans"), (3,)),
    **dict.fromkeys(("bad_words", "banned_strings"), ("a",)),
}
"""Of each parameter that is no number, a value that does something."""


def counted(text: str) -> dict[str, float]:
    """What is not zero, by sampler, kind or feature."""
    return {
        value: sample.value
        for family in text_string_to_metric_families(text)
        if family.name.endswith(("sampler_requests", "guided_requests", "feature_requests"))
        for sample in family.samples
        for label, value in sample.labels.items()
        if label != "model_name" and sample.value and sample.name.endswith("_total")
    }


def after(core: FakeCore, *asked: tuple[str, dict[str, Any]]) -> dict[str, float]:
    async def ask_all() -> str:
        async with http_client(core) as client:
            for path, body in asked:
                reply = await client.post(path, json=body)
                assert reply.status_code == 200, reply.text
            return (await client.get("/metrics")).text

    return counted(run(ask_all()))


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_is_seen(name: str) -> None:
    neutral = TABLE[name].neutral
    value = ON[name] if name in ON else (0.5 if TABLE[name].kind == "number" else neutral + 1)
    assert samplers_in_use(SamplingParams(**{name: value})) == [name]


def test_settings_are_parameters_that_change_nothing_alone() -> None:
    assert set(TABLE) >= SETTINGS
    assert samplers_in_use(SamplingParams(dry_base=3.0, xtc_threshold=0.2, mirostat_tau=1.0, seed=7)) == []


@pytest.mark.parametrize("off", [{"top_k": -1}, {"adaptive_target": -0.5}, {"sampler_priority": DEFAULT_ORDER}])
def test_what_is_switched_off_is_not_in_use(off: dict[str, Any]) -> None:
    assert samplers_in_use(SamplingParams(**off)) == []


def test_kobolds_defaults_are_samplers_but_no_order_of_the_clients() -> None:
    assert samplers_in_use(SamplingParams(**SAMPLING_DEFAULTS)) == ["temperature", "top_k", "top_p"]


def test_requests_are_counted_by_what_they_ask_for() -> None:
    found = after(
        saying("ok"),
        ("/v1/completions", {"prompt": "a", "min_p": 0.1, "stop": "x", "stream": True}),
        ("/v1/completions", {"prompt": ["a", "b"], "min_p": 0.2, "n": 2, "num_speculative_tokens": 0}),
        ("/v1/completions", {"prompt": "a", "guided_regex": "o|k", "logprobs": 1, "echo": True}),
    )
    assert found == {
        "min_p": 2, "stop": 1, "stream": 1, "several_prompts": 1, "n": 1, "no_speculation": 1, "regex": 1,
        "logprobs": 1, "echo": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("feature", "body"),
    [
        ("stop_token_ids", {"stop_token_ids": [7]}),
        ("min_tokens", {"min_tokens": 1}),
        ("ignore_eos", {"ignore_eos": True, "max_tokens": 4}),
        ("prompt_logprobs", {"prompt_logprobs": 0}),
    ],
)
def test_other_features(feature: str, body: dict[str, Any]) -> None:
    assert feature in FEATURES
    assert after(saying("ok"), ("/v1/completions", {"prompt": "a", **body})) == {feature: 1}


def test_params_are_observed_once_a_request() -> None:
    async def ask() -> str:
        async with http_client(saying("ok")) as client:
            await client.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2, "max_tokens": 9})
            await client.post("/v1/completions", json={"prompt": "a", "nonsense": 1})
            return (await client.get("/metrics")).text

    text = run(ask())
    assert 'isthmus:request_params_n_sum{model_name="tiny"} 2.0' in text
    assert 'isthmus:request_params_n_count{model_name="tiny"} 1.0' in text
    assert 'isthmus:request_params_max_tokens_sum{model_name="tiny"} 9.0' in text
