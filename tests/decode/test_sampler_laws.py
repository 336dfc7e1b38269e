"""What many draws follow, and what samplers with a memory settle on."""

import math
import struct

import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.decode.sampler_state import SequenceState
from isthmus.decode.sampling_steps import Batch, apply_steps, keep_by_mirostat, reshape
from isthmus.engine.plan import Draw, SequenceSeed
from isthmus.kernels.gumbel_draw import draw_tokens
from isthmus.tests import sampler_oracle as oracle
from isthmus.wire.noise import DRAW, XTC, noise_word, philox_key, uniform
from isthmus.wire.sampling import SamplingParams

CPU = torch.device("cpu")
LINE = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 1.2


def state_of(params, choice=0, state=b""):
    seed = SequenceSeed(0, params, philox_key(9, 0, choice), (), (), frozenset(), state)
    return SequenceState(seed, len(LINE), CPU)


def batch_of(params, num, choice=0, start=0):
    return Batch.of([state_of(params, choice)] * num, [Draw(0, start + t) for t in range(num)], CPU)


def draw(batch):
    left = reshape(keep_by_mirostat(apply_steps(LINE.expand(len(batch.rows), -1), batch), batch), batch)
    return draw_tokens(left, batch.keys, batch.positions, batch.epochs, stream=DRAW)


def critical_value(degrees, z=3.09):
    """Of chi-square at p = 0.001 (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + z * math.sqrt(part)) ** 3


def assert_200_000_draws_follow(params, probabilities):
    tokens = torch.cat([draw(batch_of(params, 20_000, choice)) for choice in range(10)])
    expected = torch.tensor(probabilities, dtype=torch.float64) * len(tokens)
    counts = torch.bincount(tokens, minlength=len(LINE)).double()
    alive = expected > 0
    assert counts[~alive].sum() == 0
    value = float(((counts - expected)[alive].square() / expected[alive]).sum())
    assert value < critical_value(int(alive.sum()) - 1)


def test_the_plain_draw():
    assert_200_000_draws_follow(SamplingParams(), oracle.softmax(LINE.tolist()))


def test_top_p():
    assert_200_000_draws_follow(SamplingParams(top_p=0.8), oracle.softmax(oracle.top_p(LINE.tolist(), 0.8)))


@pytest.mark.parametrize("amount", [-0.8, 1.0])
def test_skew(amount):
    assert_200_000_draws_follow(SamplingParams(skew=amount), oracle.skewed_softmax(LINE.tolist(), amount))


def test_xtc_acts_as_often_as_it_shall():
    """Coin and draw are independent: the law is the mixture."""
    acting, idle = (oracle.softmax(oracle.xtc(LINE.tolist(), 0.05, acts)) for acts in (True, False))
    mixture = [0.3 * a + 0.7 * b for a, b in zip(acting, idle, strict=True)]
    assert acting != idle
    assert_200_000_draws_follow(SamplingParams(xtc_probability=0.3, xtc_threshold=0.05), mixture)


def test_mirostat_2_truncates_before_the_draw():
    """mu begins at 2 tau."""
    law = oracle.softmax(oracle.mirostat_2(LINE.tolist(), 3.0))
    assert 0.0 in law
    assert_200_000_draws_follow(SamplingParams(mirostat_mode=2, mirostat_tau=1.5), law)


def test_the_coin_of_xtc_is_the_word_of_id_0_in_its_own_stream():
    params = SamplingParams(xtc_probability=0.5, xtc_threshold=0.05)
    batch = batch_of(params, 64)
    key = philox_key(9, 0, 0)
    coins = [uniform(noise_word(key, XTC, t, 0, 0)) < 0.5 for t in range(64)]
    removed = apply_steps(LINE.expand(64, -1), batch).isinf().any(dim=-1)
    assert removed.tolist() == coins
    assert any(coins)
    assert not all(coins)


def test_a_rewind_epoch_gives_other_noise():
    tokens = []
    for epoch in range(2):
        sampler = Sampler(len(LINE))
        sampler.admit(SequenceSeed(0, SamplingParams(), (1, 2), (), (), frozenset()))
        tokens.append([int(sampler.sample(LINE[None], [Draw(0, t, epoch=epoch)]).token_ids) for t in range(30)])
    assert tokens[0] != tokens[1]


def surprises(params, lines, judge):
    """Of one sequence's tokens in bits, in the distribution that `judge` (logits, mu) leaves; and its last state."""
    sampler, state, found = Sampler(lines.shape[1]), b"", []
    sampler.admit(SequenceSeed(0, params, philox_key(3, 0, 0), (), (), frozenset()))
    mu = 2 * params.mirostat_tau
    for t, line in enumerate(lines):
        samples = sampler.sample(line[None], [Draw(0, t)])
        p = oracle.softmax(judge(line.tolist(), mu))[int(samples.token_ids)]
        found.append(-math.log2(p))
        (state,) = samples.states
        expected = mu - params.mirostat_eta * (found[-1] - params.mirostat_tau)
        (mu,) = struct.unpack("<f", state)
        assert mu == pytest.approx(expected, rel=1e-6, abs=1e-6)
    return found


@pytest.mark.parametrize(("mode", "judge"), [(1, oracle.mirostat_1), (2, oracle.mirostat_2)])
def test_mirostats_surprise_converges_to_tau(mode, judge):
    """It is that of the truncated distribution, and so is that which moves mu."""
    lines = torch.randn(1500, 200, generator=torch.Generator().manual_seed(4)) * 1.5
    found = surprises(SamplingParams(mirostat_mode=mode, mirostat_tau=3.0, mirostat_eta=0.1), lines, judge)
    assert sum(found[500:]) / 1000 == pytest.approx(3.0, abs=0.05)


def test_adaptive_p_begins_at_equilibrium_and_averages_what_it_chose():
    params = SamplingParams(adaptive_target=0.3, adaptive_decay=0.8, min_p=0.05)
    sampler = Sampler(len(LINE))
    sampler.admit(SequenceSeed(0, params, philox_key(3, 0, 0), (), (), frozenset()))
    law = oracle.softmax(oracle.min_p(LINE.tolist(), 0.05))
    total, weight = 0.3 / 0.2, 1 / 0.2
    for t in range(50):
        samples = sampler.sample(LINE[None], [Draw(0, t)])
        total, weight = 0.8 * total + law[int(samples.token_ids)], 0.8 * weight + 1
        assert struct.unpack("<2f", samples.states[0]) == pytest.approx((total, weight), rel=1e-5)
    assert weight == pytest.approx(5)


def mean_choice(target, lines):
    sampler, chosen = Sampler(lines.shape[1]), []
    sampler.admit(SequenceSeed(0, SamplingParams(adaptive_target=target, min_p=0.02), (1, 2), (), (), frozenset()))
    for t, line in enumerate(lines):
        token = int(sampler.sample(line[None], [Draw(0, t)]).token_ids)
        chosen.append(float(line.double().softmax(0)[token]))
    return sum(chosen) / len(chosen)


def test_adaptive_p_pulls_towards_its_target():
    lines = torch.randn(400, 50, generator=torch.Generator().manual_seed(4)) * 2.0
    low, middle, high = (mean_choice(target, lines) for target in (0.05, 0.3, 0.9))
    assert low + 0.05 < middle < high - 0.05


@pytest.mark.parametrize(
    ("params", "state"),
    [(SamplingParams(mirostat_mode=2), b"12345678"), (SamplingParams(adaptive_target=0.5), b"1234")],
)
def test_the_state_of_another_sampler_is_refused(params, state):
    with pytest.raises(ValueError, match="sampler state"):
        state_of(params, state=state)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.0, mirostat_mode=2, skew=1.0)])
def test_rows_without_memory_have_no_state(params):
    sampler = Sampler(len(LINE))
    sampler.admit(SequenceSeed(0, params, (1, 2), (), (), frozenset()))
    assert list(sampler.sample(LINE[None], [Draw(0, 0)]).states) == [b""]
