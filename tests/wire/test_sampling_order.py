import pytest
from isthmus.wire.sampling import DEFAULT_ORDER, SamplingParams
from isthmus.wire.sampling_order import active_steps, is_adaptive, is_greedy, order_of

ALL = {
    "dry_multiplier": 0.8,
    "presence_penalty": 0.5,
    "no_repeat_ngram_size": 3,
    "temperature": 0.7,
    "nsigma": 1.0,
    "top_k": 40,
    "top_p": 0.9,
    "top_a": 0.1,
    "min_p": 0.05,
    "tfs": 0.95,
    "eta_cutoff": 0.0003,
    "epsilon_cutoff": 0.0003,
    "typical_p": 0.9,
    "smoothing_factor": 0.2,
    "xtc_probability": 0.5,
}
EACH = {name: {name: value} for name, value in ALL.items()}


def test_neutral_requests_have_no_steps():
    assert active_steps(SamplingParams()) == ()
    assert active_steps(SamplingParams(xtc_threshold=0.3, smoothing_curve=2.0, dynatemp_exponent=2.0, top_k=-1)) == ()


def test_each_parameter_brings_its_step_in_the_default_order():
    assert [active_steps(SamplingParams(**one)) for one in EACH.values()] == [(step,) for step in DEFAULT_ORDER]
    assert active_steps(SamplingParams(**ALL)) == DEFAULT_ORDER


@pytest.mark.parametrize("name", ["repetition_penalty", "frequency_penalty"])
def test_other_penalties(name):
    assert active_steps(SamplingParams(**{name: 1.5})) == ("penalties",)


@pytest.mark.parametrize("ends", [(0.5, 0.0), (0.0, 1.5)])
def test_a_dynamic_temperature_is_a_temperature_step_and_never_greedy(ends):
    params = SamplingParams(dynatemp_min=ends[0], dynatemp_max=ends[1], temperature=0.0)
    assert active_steps(params) == ("temperature",)
    assert not is_greedy(params)


def test_temperature_last_comes_after_xtc():
    order = active_steps(SamplingParams(**ALL, temperature_last=True))
    assert order == (*(step for step in DEFAULT_ORDER if step != "temperature"), "temperature")


def test_an_order_of_its_own_decides_over_temperature_last():
    own = DEFAULT_ORDER[::-1]
    assert order_of(SamplingParams(sampler_priority=own, temperature_last=True)) == own
    assert active_steps(SamplingParams(**ALL, sampler_priority=own)) == own


@pytest.mark.parametrize("mode", [1, 2])
def test_mirostat_takes_the_place_of_truncation(mode):
    steps = active_steps(SamplingParams(**ALL, mirostat_mode=mode))
    assert steps == ("dry", "penalties", "no_repeat_ngram", "temperature", "quadratic")


def test_greedy_rows_are_only_penalised():
    params = SamplingParams(**(ALL | {"temperature": 0.0}), mirostat_mode=2)
    assert is_greedy(params)
    assert active_steps(params) == ("dry", "penalties", "no_repeat_ngram")


def test_adaptive_p_yields_to_mirostat_and_takes_a_target_of_0():
    assert is_adaptive(SamplingParams(adaptive_target=0.0))
    assert not is_adaptive(SamplingParams(adaptive_target=0.5, mirostat_mode=1))
    assert not is_adaptive(SamplingParams())
