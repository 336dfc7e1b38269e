"""The samplers against plain Python, transformers, and vectors worked out by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.kernels import samplers
from isthmus.kernels.samplers_rows import entropy, log_probability, partition, row_sums
from isthmus.tests import sampler_oracle as oracle
from transformers.generation import logits_process as transformers

INF = math.inf


def randn(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def columns(num_rows, *values):
    """One value for all rows, as samplers take it."""
    dtypes = {int: torch.int64, bool: torch.bool, float: torch.float64}
    return [torch.full((num_rows,), value, dtype=dtypes[type(value)]) for value in values]


def run(sampler, logits, *values):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    return sampler(logits, *columns(len(logits), *values))


def of(*probabilities):
    """Logits of one row."""
    return torch.tensor([probabilities], dtype=torch.float64).log().float()


def kept(logits):
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


TRUNCATIONS: dict[str, Any] = {
    "nsigma": (samplers.keep_nsigma, oracle.nsigma, [(0.5,), (1.0,), (2.5,)]),
    "top_k": (samplers.keep_top_k, oracle.top_k, [(1,), (40,), (300,), (10**6,)]),
    "top_p": (samplers.keep_top_p, oracle.top_p, [(0.05,), (0.9,), (0.999,), (0.0,)]),
    "top_a": (samplers.keep_top_a, oracle.top_a, [(0.01,), (0.3,), (1.0,)]),
    "min_p": (samplers.keep_min_p, oracle.min_p, [(0.001,), (0.1,), (0.9,)]),
    "tfs": (samplers.keep_tail_free, oracle.tfs, [(0.2,), (0.95,), (0.999,), (0.0,)]),
    "eta": (samplers.keep_above_eta, oracle.eta, [(0.0003,), (0.003,), (0.5,)]),
    "epsilon": (samplers.keep_above_epsilon, oracle.epsilon, [(0.0003,), (0.01,), (0.9,)]),
    "typical": (samplers.keep_typical, oracle.typical, [(0.1,), (0.7,), (0.99,), (0.0,)]),
    "xtc": (samplers.exclude_top_choices, oracle.xtc, [(0.1, True), (0.001, True), (0.0, True), (0.1, False)]),
    "mirostat_1": (samplers.keep_mirostat_1, oracle.mirostat_1, [(0.5,), (3.0,), (9.0,)]),
    "mirostat_2": (samplers.keep_mirostat_2, oracle.mirostat_2, [(0.5,), (3.0,), (9.0,)]),
}
SHAPES: dict[str, Any] = {
    "temperature": (samplers.scale, oracle.temperature, [(0.7,), (1.9,), (0.001,)]),
    "dynatemp": (samplers.scale_dynamically, oracle.dynatemp, [(0.5, 1.5, 1.0), (1.5, 0.2, 0.6), (0.0, 3.0, 2.0)]),
    "quadratic": (samplers.bend, oracle.quadratic, [(0.3, 1.0), (0.2, 2.5), (0.1, 4.0)]),
    "adaptive_p": (samplers.adapt, oracle.adaptive_p, [(0.4, 0.4), (0.1, 0.3), (0.9, 0.1)]),
}
KINDS = {
    "wide": lambda x: x,
    "tied": lambda x: (x * 4).round() / 4,
    "masked": lambda x: x.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(7)) < 0.3, -INF),
}


def cases(table):
    return [(name, values) for name, (_, _, many) in table.items() for values in many]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "values"), cases(TRUNCATIONS))
@pytest.mark.parametrize(("size", "scale"), [(50, 2.0), (1021, 0.5), (5000, 4.0)])
def test_what_is_kept_is_what_plain_python_keeps(name, values, kind, size, scale):
    sampler, expected, _ = TRUNCATIONS[name]
    logits = KINDS[kind](randn(2, size, scale=scale))
    result = run(sampler, logits, *values)
    assert kept(result) == kept(torch.tensor([expected(row, *values) for row in logits.tolist()]))
    assert torch.equal(result, logits.where(result > -INF, -INF))


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_what_is_kept_of_50_000_tokens(name):
    sampler, expected, many = TRUNCATIONS[name]
    logits = randn(1, 50_000, seed=3)
    result = run(sampler, logits, *many[1])
    assert kept(result) == kept(torch.tensor([expected(logits[0].tolist(), *many[1])]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "values"), cases(SHAPES))
@pytest.mark.parametrize(("size", "scale"), [(50, 2.0), (1021, 0.5), (5000, 4.0)])
def test_what_is_reshaped_is_as_plain_python_does_it(name, values, kind, size, scale):
    sampler, expected, _ = SHAPES[name]
    logits = KINDS[kind](randn(2, size, scale=scale))
    expected_logits = torch.tensor([expected(row, *values) for row in logits.tolist()], dtype=torch.float32)
    torch.testing.assert_close(run(sampler, logits, *values), expected_logits, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("amount", [-3.0, -0.5, 0.7, 3.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "scale"), [(50, 2.0), (1021, 0.5), (5000, 4.0)])
def test_skew_weighs_by_differences_of_powers(amount, kind, size, scale):
    logits = KINDS[kind](randn(2, size, scale=scale))
    expected = torch.tensor([oracle.skewed_softmax(row, amount) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(run(samplers.skew, logits, amount).double().softmax(-1), expected, rtol=1e-5, atol=1e-11)


WARPERS = {
    "top_k": (samplers.keep_top_k, 40, transformers.TopKLogitsWarper(40)),
    "top_p": (samplers.keep_top_p, 0.9, transformers.TopPLogitsWarper(0.9)),
    "min_p": (samplers.keep_min_p, 0.05, transformers.MinPLogitsWarper(0.05)),
    "typical": (samplers.keep_typical, 0.8, transformers.TypicalLogitsWarper(0.8)),
    "typical, narrow": (samplers.keep_typical, 0.15, transformers.TypicalLogitsWarper(0.15)),
    "eta": (samplers.keep_above_eta, 3e-3, transformers.EtaLogitsWarper(3e-3)),
    "epsilon": (samplers.keep_above_epsilon, 3e-3, transformers.EpsilonLogitsWarper(3e-3)),
}


@pytest.mark.parametrize("scale", [0.1, 3.0, 10.0])
@pytest.mark.parametrize(("sampler", "value", "warper"), WARPERS.values(), ids=WARPERS)
def test_a_sampler_equals_transformers(sampler, value, warper, scale):
    """Theirs in fp64: in fp32 it loses the order of nearly equal tokens."""
    logits = randn(5, 1021, scale=scale)
    expected = warper(torch.zeros(5, 1, dtype=torch.int64), logits.double())
    assert torch.equal(run(sampler, logits, value), expected.float())


def test_typical_by_hand():
    """p = .5, .3, .15, .05: H = .3466 + .3612 + .2846 + .1498 = 1.1421; |−ln p − H| = .449, .062, .755, 1.854. Token 1
    alone has .3 < .6, so token 0, which crosses .6, is kept too; .25 is crossed by token 1 itself."""
    assert kept(run(samplers.keep_typical, of(0.5, 0.3, 0.15, 0.05), 0.6)) == [[0, 1]]
    assert kept(run(samplers.keep_typical, of(0.5, 0.3, 0.15, 0.05), 0.25)) == [[1]]


def test_typical_may_drop_the_most_likely_token():
    assert 0 not in kept(run(samplers.keep_typical, of(0.4, *[0.02] * 30), 0.2))[0]


def test_tail_free_by_hand():
    """p = .5, .25, .15, .08, .02: p' = −.25, −.1, −.07, −.06; |p''| = .15, .03, .01, of .19; C = .789, .947, 1. Rank 0
    always stays; C_0 ≤ .8 keeps rank 1, C_1 ≤ .95 rank 2."""
    p = of(0.5, 0.25, 0.15, 0.08, 0.02)
    assert [kept(run(samplers.keep_tail_free, p, z)) for z in (0.5, 0.8, 0.95)] == [[[0]], [[0, 1]], [[0, 1, 2]]]


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (2, 1), (3, 2), (9, 8)])
def test_tail_free_of_a_straight_line_drops_the_last_rank_only(size, expected):
    assert kept(run(samplers.keep_tail_free, torch.zeros(1, size), 0.5)) == [list(range(expected))]


def test_epsilon_and_eta_take_probabilities_not_units_of_1e_4():
    """.0003 is SillyTavern's 3: of 1000 tokens those at or above it stay."""
    logits = randn(1, 1000, seed=1)
    p = logits.double().softmax(-1)
    assert kept(run(samplers.keep_above_epsilon, logits, 0.0003)) == [(p[0] >= 0.0003).nonzero().flatten().tolist()]
    assert len(kept(run(samplers.keep_above_epsilon, logits, 0.0003))[0]) > 50
    assert len(kept(run(samplers.keep_above_eta, logits, 0.0003))[0]) > 50


def test_epsilon_and_eta_keep_the_most_likely_token_with_its_equals():
    assert kept(run(samplers.keep_above_epsilon, [[0.0, 2.0, 2.0, 1.0]], 1.0)) == [[1, 2]]
    assert kept(run(samplers.keep_above_eta, [[0.0, 2.0, 2.0, 1.0]], 1.0)) == [[1, 2]]


def test_eta_by_hand():
    """p = .6, .3, .08, .02: H = .3065 + .3612 + .2021 + .0782 = .948; √.04 e^−.948 = .0775 > .04, so .04 decides. With
    .16 it is .4 × .3875 = .155: the third goes; epsilon alone at .16 too."""
    p = of(0.6, 0.3, 0.08, 0.02)
    assert [kept(run(samplers.keep_above_eta, p, eta)) for eta in (0.04, 0.16)] == [[[0, 1, 2]], [[0, 1]]]


def test_top_a_by_hand():
    """max p = .6: .36 a is .072 for .2, .18 for .5."""
    p = of(0.6, 0.3, 0.08, 0.02)
    assert [kept(run(samplers.keep_top_a, p, a)) for a in (0.2, 0.5)] == [[[0, 1, 2]], [[0, 1]]]


def test_nsigma_by_hand():
    """4, 2, 0, −2: mean 1, σ = √5 = 2.236 (not 2.58, that of a sample)."""
    logits = [[4.0, 2.0, 0.0, -2.0]]
    assert [kept(run(samplers.keep_nsigma, logits, n)) for n in (0.8, 0.9, 1.7, 1.8)] == [
        [[0]],
        [[0, 1]],
        [[0, 1]],
        [[0, 1, 2]],
    ]


@pytest.mark.parametrize("banned", [1, 500, 998])
def test_masked_logits_count_in_no_statistic(banned):
    """A row with removed tokens is treated as the row of the others."""
    left = randn(1, 1000 - banned, seed=2)
    padded = torch.cat((left, torch.full((1, banned), -INF)), dim=1)
    for name in ("nsigma", "typical", "eta", "epsilon", "top_a", "top_p", "xtc", "mirostat_2"):
        sampler, _, many = TRUNCATIONS[name]
        assert kept(run(sampler, padded, *many[1])) == kept(run(sampler, left, *many[1])), name
    for name in ("dynatemp", "quadratic", "adaptive_p"):
        sampler, _, many = SHAPES[name]
        torch.testing.assert_close(run(sampler, padded, *many[0])[:, :-banned], run(sampler, left, *many[0]))


def test_xtc_by_hand():
    p = of(0.4, 0.3, 0.15, 0.1, 0.05)
    assert kept(run(samplers.exclude_top_choices, p, 0.12, True)) == [[2, 3, 4]]
    assert kept(run(samplers.exclude_top_choices, p, 0.35, True)) == [[0, 1, 2, 3, 4]]
    assert kept(run(samplers.exclude_top_choices, p, 0.12, False)) == [[0, 1, 2, 3, 4]]


def test_xtc_leaves_one_of_equals_the_last_in_order():
    assert kept(run(samplers.exclude_top_choices, [[1.0, 1.0, 3.0, 1.0, -4.0]], 0.05, True)) == [[3, 4]]


def test_xtc_removes_and_does_not_merely_lower():
    result = run(samplers.exclude_top_choices, of(0.6, 0.4), 0.1, True)
    assert result.tolist() == [[-INF, of(0.6, 0.4)[0, 1].item()]]


def test_quadratic_by_hand():
    """d = −2: factor .5, curve 1: 3 − .5 × 4 = 1. Curve 2: k = .25, s = .25: 3 − 1 − 2 = 0. Curve 5: k = −.5, s = 1:
    3 + 2 − 8 = −3."""
    for curve, expected in ((1.0, 1.0), (2.0, 0.0), (5.0, -3.0)):
        assert run(samplers.bend, [[3.0, 1.0, -INF]], 0.5, curve).tolist() == [[3.0, expected, -INF]]


@pytest.mark.parametrize("curve", [1.0, 2.0, 3.0, 8.0])
def test_quadratic_never_makes_nan(curve):
    result = run(samplers.bend, [[3.0, -1e30, -INF, 2.0]], 0.5, curve)
    assert result[0, 1] == result[0, 2] == -INF
    assert not result.isnan().any()


def test_dynatemp_is_the_lowest_for_a_sure_row_and_the_highest_for_a_flat_one():
    assert run(samplers.scale_dynamically, [[5.0, -INF, -INF]], 0.5, 2.0, 1.0).tolist() == [[10.0, -INF, -INF]]
    assert run(samplers.scale_dynamically, [[1.0, 1.0, -INF]], 0.5, 2.0, 1.0).tolist() == [[0.5, 0.5, -INF]]


def test_dynatemp_by_hand():
    """p = .5, .25, .25: H = 1.5 ln 2 of ln 3: h = .9464; T = .5 + h² = 1.3957."""
    logits = of(0.5, 0.25, 0.25)
    temperature = 0.5 + (1.5 * math.log(2) / math.log(3)) ** 2
    torch.testing.assert_close(run(samplers.scale_dynamically, logits, 0.5, 1.5, 2.0), logits / temperature)


def test_dynatemp_of_0_is_raised():
    assert run(samplers.scale_dynamically, [[5.0, -INF]], 0.0, 2.0, 1.0)[0, 0] == torch.tensor(5.0) / 0.01


def test_mirostat_2_by_hand():
    """Surprises of .5, .25, .125, .125: 1, 2, 3, 3 bits. The best stays whatever mu is."""
    p = of(0.5, 0.25, 0.125, 0.125)
    expected = [[[0]], [[0]], [[0, 1]], [[0, 1, 2, 3]]]
    assert [kept(run(samplers.keep_mirostat_2, p, mu)) for mu in (-4.0, 1.5, 2.5, 3.5)] == expected


def test_mirostat_1_by_hand():
    """Zipf's law with s = 2 gives b_i = 2 t_i: the fit is exact. e = 1, V = 200: k = √(2^mu ÷ (1 − 1/200)); 2^6: 8.02,
    2^5: 5.67."""
    logits = -2 * torch.arange(1, 201).double().log()[None]
    assert [len(kept(run(samplers.keep_mirostat_1, logits, mu))[0]) for mu in (6.0, 5.0, -20.0, 40.0)] == [8, 5, 1, 200]


@pytest.mark.parametrize("row", [[1.0], [1.0, -INF, -INF], [0.5] * 300, [0.0, -1e30]])
@pytest.mark.parametrize("mu", [-5.0, 0.0, 8.0, 60.0])
def test_mirostat_1_survives_rows_that_fit_no_law(row, mu):
    result = run(samplers.keep_mirostat_1, [row], mu)
    assert result[0, 0] == row[0]


def test_mirostat_1_where_the_exponent_is_1():
    """e = 0: k = 2^mu ÷ ln V. V = 200: 2^6 ÷ 5.298 = 12.08."""
    logits = -torch.arange(1, 201).double().log()[None]
    assert len(kept(run(samplers.keep_mirostat_1, logits, 6.0))[0]) == 12


def test_adaptive_p_by_hand():
    """p = .5, .3, .2, target .3, average .3: t = .3; d = 2/3, 0, 1/3: 5 − 10 × (4/9) ÷ (5/3) = 2.333, 5,
    5 − 10 × (1/9) ÷ (4/3) = 4.1667."""
    result = run(samplers.adapt, of(0.5, 0.3, 0.2), 0.3, 0.3)
    torch.testing.assert_close(result, torch.tensor([[7 / 3, 5.0, 25 / 6]]))


def test_skew_by_hand():
    """a = 2: F = .5, .8, 1: .25, .64 − .25 = .39, .36."""
    result = run(samplers.skew, of(0.5, 0.3, 0.2), math.log(2)).softmax(-1)
    torch.testing.assert_close(result, torch.tensor([[0.25, 0.39, 0.36]]))


def test_skew_does_not_depend_on_the_order_of_ids():
    logits, shuffle = randn(1, 300), torch.randperm(300, generator=torch.Generator().manual_seed(1))
    straight, shuffled = (run(samplers.skew, x, 1.5) for x in (logits, logits[:, shuffle]))
    assert torch.equal(straight[:, shuffle], shuffled)


@pytest.mark.parametrize("amount", [-20.0, -5.0, 5.0, 20.0])
def test_skew_far_out_stays_finite_and_leans_the_right_way(amount):
    logits = randn(1, 5000, scale=6.0)
    skewed = run(samplers.skew, logits, amount)
    assert skewed.isfinite().all()
    mean = [(x.double().softmax(-1) * logits.double()).sum() for x in (skewed, logits)]
    assert (mean[0] < mean[1]) == (amount > 0)


def test_skew_keeps_the_share_of_unlikely_tokens():
    """Differences of F^a cancel here in fp64: 1 − 2⁻⁵⁰ and the like. For a = 2 a last share q has 2 q − q²."""
    q = 2.0**-60
    result = run(samplers.skew, [[0.0, math.log(q)]], math.log(2))
    assert (result[0, 1] - result[0, 0]).item() == pytest.approx(math.log(2 * q), rel=1e-6)


def test_penalties_by_hand():
    values = torch.tensor([4.0, -4.0, 0.0, 4.0])
    ones = torch.ones(4)
    result = samplers.penalise(values, torch.tensor([0.0, 0.0, 1.0, 3.0]), 2 * ones, 0.5 * ones, 0.25 * ones)
    assert result.tolist() == [2.0, -8.0, -0.75, 2.0 - 1.5 - 0.25]


@pytest.mark.parametrize("size", [1, 31, 32, 33, 200])
def test_a_mask_allows_the_tokens_whose_bits_are_set(size):
    allowed = torch.rand(3, size, generator=torch.Generator().manual_seed(size)) < 0.4
    words = torch.zeros(3, -(-size // 32), dtype=torch.int64)
    for token in range(size):
        words[:, token // 32] |= allowed[:, token].long() << token % 32
    result = samplers.mask_tokens(torch.zeros(3, size), words.int())
    assert torch.equal(result == 0, allowed)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-40, 8), min_size=2, max_size=300), st.floats(0.01, 0.99), st.sampled_from(sorted(TRUNCATIONS))
)
def test_ties_are_kept_or_removed_as_plain_python_does(quarters, value, name):
    if name in ("top_k", "mirostat_1"):
        return
    sampler, expected, _ = TRUNCATIONS[name]
    logits = [q / 4 for q in quarters]
    values = (value, True) if name == "xtc" else (value,)
    assert kept(run(sampler, [logits], *values)) == kept(torch.tensor([expected(logits, *values)]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-40, 8), min_size=1, max_size=300), st.integers(1, 400))
def test_top_k_of_many_equals(quarters, k):
    logits = [q / 4 for q in quarters]
    assert kept(run(samplers.keep_top_k, [logits], k)) == kept(torch.tensor([oracle.top_k(logits, k)]))


@pytest.mark.parametrize("name", [*TRUNCATIONS, *SHAPES])
def test_inputs_are_left_as_they_were(name):
    sampler, _, many = (TRUNCATIONS | SHAPES)[name]
    logits = randn(2, 300)
    before = logits.clone()
    run(sampler, logits, *many[0])
    assert torch.equal(logits, before)


def test_statistics_of_rows():
    logits = randn(3, 5001)
    expected = torch.distributions.Categorical(logits=logits.double())
    assert torch.allclose(entropy(logits)[2].squeeze(1), expected.entropy(), rtol=1e-6)
    largest, log_total = partition(logits)
    assert torch.allclose((logits.double() - largest - log_total), expected.logits, rtol=0, atol=1e-6)
    tokens = torch.tensor([0, 17, 5000])
    assert torch.allclose(log_probability(logits, tokens), expected.log_prob(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 100_003])
def test_sums_of_a_row_do_not_depend_on_how_many_rows_there_are(size):
    values = randn(5, size).double()
    together = row_sums(values)
    assert torch.allclose(together.squeeze(1), values.sum(-1))
    for row in range(5):
        assert torch.equal(row_sums(values[row : row + 1]), together[row : row + 1])
