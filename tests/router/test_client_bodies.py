"""What user interfaces send once they see that all samplers are there: understood, and meant as they mean it."""

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import ask
from isthmus.wire.sampler_lists import kobold_order
from isthmus.wire.sampling import SamplingParams

LITE = {
    "n": 1,
    "max_context_length": 8192,
    "max_length": 20,
    "rep_pen": 1.05,
    "rep_pen_range": 360,
    "rep_pen_slope": 0.7,
    "temperature": 0.75,
    "top_p": 0.92,
    "top_k": 100,
    "top_a": 0.1,
    "typical": 0.97,
    "tfs": 0.98,
    "sampler_order": [6, 0, 1, 3, 4, 2, 5],
    "memory": "",
    "trim_stop": True,
    "images": [],
    "audio": [],
    "sampler_seed": 77,
    "grammar": "",
    "grammar_retain_state": False,
    "genkey": "KCPP1234",
    "mirostat": 2,
    "mirostat_tau": 6.0,
    "mirostat_eta": 0.2,
    "min_p": 0.05,
    "dynatemp_range": 0.25,
    "dynatemp_exponent": 1.5,
    "smoothing_factor": 0.3,
    "smoothing_curve": 1.2,
    "nsigma": 1.5,
    "banned_tokens": ["shivers down"],
    "render_special": False,
    "logprobs": False,
    "replace_instruct_placeholders": True,
    "dry_multiplier": 0.8,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": 360,
    "dry_sequence_breakers": ["\n", ":", '"', "*"],
    "xtc_threshold": 0.15,
    "xtc_probability": 0.4,
    "presence_penalty": 0.1,
    "logit_bias": {"65": -5},
    "adaptive_target": 0.4,
    "adaptive_decay": 0.8,
    "guidance_scale": 1,
    "negative_prompt": "dull",
    "stop_sequence": ["\nUser:"],
    "use_default_badwordsids": False,
    "bypass_eos": False,
    "prompt": "x",
}

SILLYTAVERN_APHRODITE = {
    "prompt": "x",
    "model": "tiny",
    "max_new_tokens": 20,
    "max_tokens": 20,
    "logprobs": 10,
    "temperature": 1.25,
    "dynamic_temperature": True,
    "dynatemp_low": 0.3,
    "dynatemp_high": 2.2,
    "dynatemp_range": 0.9500000000000001,
    "dynatemp_exponent": 1.1,
    "dynatemp_min": 0.3,
    "dynatemp_max": 2.2,
    "top_p": 0.9,
    "typical_p": 0.9,
    "typical": 0.9,
    "sampler_seed": 5,
    "seed": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.2,
    "top_k": 40,
    "skew": -0.5,
    "min_tokens": 0,
    "add_bos_token": True,
    "smoothing_factor": 0.2,
    "smoothing_curve": 1,
    "dry_allowed_length": 2,
    "dry_multiplier": 0.8,
    "dry_base": 1.75,
    "dry_sequence_breakers": '["\\n", ":", "\\"", "*"]',
    "dry_penalty_last_n": 0,
    "max_tokens_second": 0,
    "stopping_strings": ["\nYou:"],
    "stop": ["\nYou:"],
    "truncation_length": 8192,
    "ban_eos_token": False,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "include_reasoning": True,
    "top_a": 0.2,
    "tfs": 0.95,
    "eta_cutoff": 4,
    "epsilon_cutoff": 3,
    "mirostat_mode": 1,
    "mirostat_tau": 5,
    "mirostat_eta": 0.1,
    "custom_token_bans": [66],
    "banned_strings": ["shivers down"],
    "api_type": "aphrodite",
    "api_server": "http://127.0.0.1:2242",
    "xtc_threshold": 0.1,
    "xtc_probability": 0.5,
    "nsigma": 1,
    "top_n_sigma": 1,
    "min_keep": 0,
    "adaptive_target": -0.01,
    "adaptive_decay": 0.9,
    "n": 1,
    "temperature_last": True,
    "spaces_between_special_tokens": True,
    "guided_grammar": "",
    "early_stopping": False,
    "include_stop_str_in_output": False,
    "no_repeat_ngram_size": 3,
    "sampler_priority": [
        "dry", "penalties", "no_repeat_ngram", "temperature", "top_nsigma", "top_p_top_k", "top_a", "min_p", "tfs",
        "eta_cutoff", "epsilon_cutoff", "typical_p", "quadratic", "xtc",
    ],
    "logit_bias": {"65": -5},
    "stream": False,
}  # fmt: skip


def params_of(path: str, body: dict) -> SamplingParams:
    core = FakeCore()
    reply = ask(core, "POST", path, json=body)
    assert reply.status_code == 200, reply.text
    return core.streams[0].job.params


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/extra/generate/stream"])
def test_kobold_lite(path):
    assert params_of(path, LITE) == SamplingParams(
        temperature=0.75,
        dynatemp_min=0.5,
        dynatemp_max=1.0,
        dynatemp_exponent=1.5,
        smoothing_factor=0.3,
        smoothing_curve=1.2,
        top_p=0.92,
        top_k=100,
        top_a=0.1,
        typical_p=0.97,
        tfs=0.98,
        min_p=0.05,
        nsigma=1.5,
        repetition_penalty=1.05,
        repetition_penalty_range=360,
        repetition_penalty_slope=0.7,
        presence_penalty=0.1,
        dry_multiplier=0.8,
        dry_range=360,
        xtc_threshold=0.15,
        xtc_probability=0.4,
        mirostat_mode=2,
        mirostat_tau=6.0,
        mirostat_eta=0.2,
        adaptive_target=0.4,
        adaptive_decay=0.8,
        logit_bias={65: -5.0},
        banned_strings=("shivers down",),
        sampler_priority=kobold_order([6, 0, 1, 3, 4, 2, 5]),
        seed=77,
        max_tokens=20,
    )


def test_sillytavern_with_aphrodite():
    params = params_of("/v1/completions", SILLYTAVERN_APHRODITE)
    assert (params.dynatemp_min, params.dynatemp_max, params.dynatemp_exponent) == (0.3, 2.2, 1.1)
    assert (params.eta_cutoff, params.epsilon_cutoff) == (4e-4, 3e-4)
    assert (params.mirostat_mode, params.skew, params.nsigma, params.adaptive_target) == (1, -0.5, 1.0, -0.01)
    assert (params.dry_range, params.dry_sequence_breakers) == (0, ("\n", ":", '"', "*"))
    assert (params.custom_token_bans, params.logit_bias, params.banned_strings) == ((66,), {65: -5}, ("shivers down",))
    assert (params.logprobs, params.max_tokens, params.seed) == (10, 20, 5)
    assert params.sampler_priority[6:8] == ("top_p", "top_a")
