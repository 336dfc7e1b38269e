"""Any mixture of samplers: a sequence draws the same alone and among others, and goes on the same after a replay."""

import dataclasses
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.decode.sampler import Sampler
from isthmus.engine.plan import Draw, SequenceSeed
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import DEFAULT_ORDER, SamplingParams

STEPS = 4
VALUES: dict[str, Any] = {
    "temperature": [0.0, 0.4, 1.7],
    "top_k": [1, 30, 500],
    "top_p": [0.3, 0.95],
    "min_p": [0.01, 0.2],
    "top_a": [0.1, 0.6],
    "tfs": [0.5, 0.97],
    "eta_cutoff": [0.0004, 0.05],
    "epsilon_cutoff": [0.0004, 0.05],
    "typical_p": [0.3, 0.95],
    "nsigma": [0.7, 2.0],
    "xtc_probability": [0.5, 1.0],
    "xtc_threshold": [0.0, 0.02],
    "dynatemp_min": [0.3],
    "dynatemp_max": [1.8],
    "dynatemp_exponent": [0.5],
    "smoothing_factor": [0.2, 1.0],
    "smoothing_curve": [1.5, 4.0],
    "skew": [-1.0, 2.0],
    "mirostat_mode": [1, 2],
    "mirostat_tau": [2.0],
    "adaptive_target": [0.0, 0.4],
    "adaptive_decay": [0.0, 0.99],
    "repetition_penalty": [0.8, 1.3],
    "presence_penalty": [-0.5, 0.7],
    "frequency_penalty": [0.4],
    "repetition_penalty_range": [3],
    "repetition_penalty_slope": [0.5],
    "no_repeat_ngram_size": [1, 2],
    "dry_multiplier": [1.5],
    "dry_allowed_length": [1],
    "logit_bias": [{3: 4.0, 8: -100.0}],
    "min_tokens": [2, 100],
    "allowed_token_ids": [(7,), tuple(range(2, 40))],
    "custom_token_bans": [(1, 2, 3)],
    "temperature_last": [True],
    "logprobs": [0, 3],
    "logprobs_mode": ["processed"],
}
mixtures = st.builds(
    lambda chosen, order, shuffled: SamplingParams(
        dry_sequence_breakers=(),
        **{
            name: options[pick % len(options)]
            for (name, options), pick in zip(VALUES.items(), chosen, strict=True)
            if pick
        },
        sampler_priority=tuple(order) if shuffled else (),
    ),
    st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 3]), min_size=len(VALUES), max_size=len(VALUES)),
    st.permutations(DEFAULT_ORDER),
    st.booleans(),
)


def sampler_of(seeds, vocab_size):
    sampler = Sampler(vocab_size)
    for seed in seeds:
        sampler.admit(seed)
    return sampler


def seed_of(seq_id, params, output=(), state=b""):
    key = philox_key(5, 0, seq_id)
    return SequenceSeed(seq_id, params, key, (5, 6, 7, 5), output, frozenset([2, 9]), state)


def guide(seq_id, step, vocab_size):
    """Every third sequence is guided."""
    if seq_id % 3:
        return None
    allowed = np.random.default_rng([seq_id, step]).random(-(-vocab_size // 32) * 32) < 0.5
    allowed[vocab_size:] = False
    allowed[vocab_size - 1] = True
    done: Future[np.ndarray] = Future()
    done.set_result(np.packbits(allowed, bitorder="little").view(np.int32))
    return done


def draws_of(seq_ids, step, vocab_size):
    return [Draw(i, step, epoch=i % 2, mask=guide(i, step, vocab_size)) for i in seq_ids]


def rows_of(samples):
    return list(zip(samples.token_ids.tolist(), samples.logprobs, samples.states, strict=True))


def logits_of(num_rows, vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(STEPS, num_rows, vocab_size, generator=generator) * 3
    logits[:, 1::4] = (logits[:, 1::4] * 2).round() / 2
    return logits


def assert_alone_as_together(params, vocab_size, only=None):
    logits, ids = logits_of(len(params), vocab_size), range(len(params))
    crowd = sampler_of([seed_of(i, p) for i, p in enumerate(params)], vocab_size)
    together = [rows_of(crowd.sample(logits[t], draws_of(ids, t, vocab_size))) for t in range(STEPS)]
    for i in ids if only is None else only:
        sampler = sampler_of([seed_of(i, params[i])], vocab_size)
        for t in range(STEPS):
            alone = rows_of(sampler.sample(logits[t, i : i + 1], draws_of([i], t, vocab_size)))
            assert alone == [together[t][i]]
    return logits, together


@settings(max_examples=15, deadline=None)
@given(st.lists(mixtures, min_size=32, max_size=32))
def test_any_mixture_is_the_same_alone_and_among_31_others(params):
    assert_alone_as_together(params, 700)


EVERYTHING = SamplingParams(
    dry_sequence_breakers=(),
    **{name: options[-1] for name, options in VALUES.items() if name not in ("allowed_token_ids", "mirostat_mode")},
)
EACH = [
    SamplingParams(**({"dry_sequence_breakers": ()} | {name: options[-1]}))
    for name, options in VALUES.items()
    if name != "min_tokens"
]


@pytest.mark.parametrize("threads", [1, 2])
def test_wide_rows_are_the_same_whatever_torch_splits_over_threads(threads):
    """One row of 70,000 tokens would be summed in parallel, several would not."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_alone_as_together([*EACH[:20], EVERYTHING], 70_000)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=15, deadline=None)
@given(st.lists(mixtures, min_size=6, max_size=6), st.integers(1, STEPS - 1))
def test_a_replay_with_its_state_goes_on_as_before(params, cut):
    vocab_size = 300
    logits, whole = assert_alone_as_together(params, vocab_size, only=())
    for i, p in enumerate(params):
        output = tuple(whole[t][i][0] for t in range(cut))
        seed = seed_of(i, p, output, whole[cut - 1][i][2])
        again = sampler_of([dataclasses.replace(seed, seq_id=i + 50)], vocab_size)
        for t in range(cut, STEPS):
            (draw,) = draws_of([i], t, vocab_size)
            samples = again.sample(logits[t, i : i + 1], [msgspec.structs.replace(draw, seq_id=i + 50)])
            assert rows_of(samples) == [whole[t][i]]
