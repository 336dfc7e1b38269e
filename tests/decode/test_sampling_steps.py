import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.decode.sampling_steps import SequenceState, TokenCounts, apply_steps
from isthmus.engine.plan import SequenceSeed
from isthmus.wire.sampling import SamplingParams
from transformers.generation import logits_process as oracle

CPU = torch.device("cpu")
INF = math.inf


def state(prompt=(), output=(), stop=(), **params):
    seed = SequenceSeed(0, SamplingParams(**params), (0, 0), prompt, output, frozenset(stop))
    return SequenceState(seed, CPU)


def run(logits, *rows):
    return apply_steps(torch.as_tensor(logits, dtype=torch.float32), rows)


def randn(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def kept(logits):
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


ORACLES = {
    "temperature": ({"temperature": 0.7}, lambda: oracle.TemperatureLogitsWarper(0.7)),
    "hot": ({"temperature": 1.9}, lambda: oracle.TemperatureLogitsWarper(1.9)),
    "top_k 1": ({"top_k": 1}, lambda: oracle.TopKLogitsWarper(1)),
    "top_k 40": ({"top_k": 40}, lambda: oracle.TopKLogitsWarper(40)),
    "top_k over the vocabulary": ({"top_k": 10**6}, lambda: oracle.TopKLogitsWarper(10**6)),
    "top_p 0.1": ({"top_p": 0.1}, lambda: oracle.TopPLogitsWarper(0.1)),
    "top_p 0.9": ({"top_p": 0.9}, lambda: oracle.TopPLogitsWarper(0.9)),
    "top_p 0.999": ({"top_p": 0.999}, lambda: oracle.TopPLogitsWarper(0.999)),
    "min_p 0.05": ({"min_p": 0.05}, lambda: oracle.MinPLogitsWarper(0.05)),
    "min_p 1": ({"min_p": 1.0}, lambda: oracle.MinPLogitsWarper(1.0)),
}


@pytest.mark.parametrize(("params", "warper"), ORACLES.values(), ids=ORACLES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 10.0])
def test_a_step_equals_transformers(params, warper, scale):
    logits = randn(5, 1021, scale=scale)
    expected = warper()(torch.zeros(5, 1, dtype=torch.int64), logits)
    assert torch.equal(run(logits, *[state(**params)] * 5), expected)


def test_repetition_penalty_equals_transformers():
    logits = randn(3, 500)
    seen = torch.randint(0, 500, (3, 60), generator=torch.Generator().manual_seed(1))
    rows = [state(line[:35].tolist(), line[35:].tolist(), repetition_penalty=1.3) for line in seen]
    expected = oracle.RepetitionPenaltyLogitsProcessor(1.3)(seen, logits)
    assert torch.equal(run(logits, *rows), expected)


def test_several_steps_in_order_equal_transformers():
    logits = randn(4, 3000)
    warpers = [
        oracle.TemperatureLogitsWarper(0.8),
        oracle.TopKLogitsWarper(50),
        oracle.TopPLogitsWarper(0.9),
        oracle.MinPLogitsWarper(0.02),
    ]
    expected = logits
    for warper in warpers:
        expected = warper(torch.zeros(4, 1, dtype=torch.int64), expected)
    assert torch.equal(run(logits, *[state(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02)] * 4), expected)


def test_presence_and_frequency_follow_openai_and_count_the_output_only():
    row = state(prompt=[0, 0, 1], output=[1, 2, 2, 2], presence_penalty=0.5, frequency_penalty=0.25)
    assert run([[1.0, 2.0, 3.0, 4.0]], row).tolist() == [[1.0, 2.0 - 0.25 - 0.5, 3.0 - 0.75 - 0.5, 4.0]]


def test_negative_penalties_reward():
    row = state(output=[1, 1], presence_penalty=-1.0, frequency_penalty=-0.5)
    assert run([[0.0, 0.0]], row).tolist() == [[0.0, 2.0]]


def test_repetition_penalty_divides_positive_and_multiplies_the_rest():
    row = state(prompt=[0, 1], output=[2], repetition_penalty=2.0)
    assert run([[4.0, -4.0, 0.0, 4.0]], row).tolist() == [[2.0, -8.0, 0.0, 4.0]]


def test_penalties_come_before_temperature():
    row = state(output=[0], presence_penalty=1.0, temperature=0.5)
    assert run([[3.0, 1.0]], row).tolist() == [[4.0, 2.0]]


def test_bias_is_added_and_minus_100_is_no_mask():
    row = state(logit_bias={1: -100.0, 2: 1.5})
    assert run([[0.0, 120.0, -1.0]], row).tolist() == [[0.0, 20.0, 0.5]]


@pytest.mark.parametrize(("num_output", "masked"), [(0, True), (2, True), (3, False), (9, False)])
def test_min_tokens_masks_the_stop_tokens_until_then(num_output, masked):
    row = state(output=[0] * num_output, stop=[1, 3], min_tokens=3)
    assert kept(run(torch.zeros(1, 5), row)) == [[0, 2, 4] if masked else [0, 1, 2, 3, 4]]


def test_a_bias_cannot_lift_a_masked_stop_token():
    row = state(stop=[1], min_tokens=1, logit_bias={1: 100.0})
    assert run([[0.0, 0.0]], row).tolist() == [[0.0, -INF]]


def test_low_temperatures_are_raised():
    logits = randn(1, 50)
    assert torch.equal(run(logits, state(temperature=0.001)), run(logits, state(temperature=0.01)))


def test_greedy_rows_are_neither_scaled_nor_truncated():
    logits = randn(1, 50)
    assert torch.equal(run(logits, state(temperature=0.0, top_k=3, top_p=0.5, min_p=0.5)), logits)


def test_greedy_rows_are_still_biased_and_penalised():
    row = state(output=[0], temperature=0.0, presence_penalty=2.0, logit_bias={1: 1.0})
    assert run([[1.0, 1.0]], row).tolist() == [[-1.0, 2.0]]


def test_neutral_rows_come_back_as_they_are():
    logits = randn(3, 50)
    assert run(logits, *[state(output=[1])] * 3) is logits


def test_a_step_does_not_write_to_its_input():
    logits = randn(2, 300)
    before = logits.clone()
    everything = EVERYTHING | {"prompt": [1, 2], "output": [3], "stop": [4]}
    run(logits, state(**everything), state())
    assert torch.equal(logits, before)


TIED = [[1.0, 3.0, 2.0, 2.0, 3.0, 2.0, -5.0]]


@pytest.mark.parametrize(
    ("params", "survivors"),
    [
        ({"top_k": 1}, [1, 4]),
        ({"top_k": 3}, [1, 2, 3, 4, 5]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.5}, [1, 4]),
        ({"top_p": 0.7}, [1, 2, 4]),
        ({"min_p": 1.0}, [1, 4]),
        ({"min_p": math.exp(-1)}, [1, 2, 3, 4, 5]),
    ],
)
def test_ties(params, survivors):
    assert kept(run(TIED, state(**params))) == [survivors]


@pytest.mark.parametrize("size", [100, 1000, 10_000])
def test_top_p_of_equal_logits_keeps_the_lowest_ids(size):
    assert kept(run(torch.full((1, size), 2.5), state(top_p=0.5))) == [list(range(size // 2))]


@pytest.mark.parametrize("size", [257, 6000])
def test_top_p_next_to_1_keeps_all_but_what_is_not_needed(size):
    assert kept(run(torch.zeros(1, size), state(top_p=math.nextafter(1, 0)))) == [list(range(size))]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-40, 8), min_size=1, max_size=400),
    st.floats(0.001, 0.999),
)
def test_top_p_equals_its_definition(quarters, top_p):
    """Many equal logits, in order of (value descending, id ascending), until the sum reaches top_p."""
    logits = [q / 4 for q in quarters]
    weights = [math.exp(value) for value in logits]
    target, reached, expected = top_p * math.fsum(weights), [], []
    for token in sorted(range(len(logits)), key=lambda i: (-logits[i], i)):
        reached.append(weights[token])
        expected.append(token)
        if math.fsum(reached) >= target:
            break
    assert kept(run([logits], state(top_p=top_p))) == [sorted(expected)]


EVERYTHING = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.02,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "logit_bias": {3: 2.0, 8: -100.0},
    "min_tokens": 100,
}


def mixed_rows(vocab_size):
    """32 rows: everything, each parameter alone, and pairs of them."""
    names = list(EVERYTHING)
    chosen = [names, *([name] for name in names), *(names[i : i + 2] for i in range(8)), [], *([n] for n in names)]
    chosen += [names[i::3] for i in range(3)] + [["temperature", "top_p"]]
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, vocab_size, (32, 80), generator=generator).tolist()
    return [
        state(line[:50], line[50 : 50 + index], [1, 2], **{name: EVERYTHING[name] for name in part})
        for index, (line, part) in enumerate(zip(tokens, chosen, strict=True))
    ]


@pytest.mark.parametrize("vocab_size", [1003, 33_001])
def test_a_row_is_the_same_alone_and_among_31_others(vocab_size):
    rows = mixed_rows(vocab_size)
    logits = randn(32, vocab_size)
    together = run(logits, *rows)
    shuffled = run(logits.flip(0), *rows[::-1]).flip(0)
    for index, row in enumerate(rows):
        alone = run(logits[index : index + 1], row)[0]
        assert torch.equal(alone, together[index])
        assert torch.equal(alone, shuffled[index])


def test_masked_logits_never_become_nan():
    logits = randn(32, 1003)
    logits[:, 5:] = -INF
    result = run(logits, *mixed_rows(1003))
    assert not result.isnan().any()
    assert all(survivors for survivors in kept(result))
    assert max(max(survivors) for survivors in kept(result)) < 5


def test_one_token_left_stays():
    logits = torch.full((1, 700), -INF)
    logits[0, 123] = -7.0
    assert kept(run(logits, state(**EVERYTHING))) == [[123]]


def test_counts_grow_as_if_they_had_been_known():
    tokens = torch.randint(0, 60, (300,), generator=torch.Generator().manual_seed(2)).tolist()
    stepped = TokenCounts(tokens[:20], [], CPU)
    for token in tokens[20:]:
        stepped.add(token)
    known = TokenCounts(tokens[:20], tokens[20:], CPU)
    assert torch.equal(stepped.ids, known.ids)
    assert torch.equal(stepped.counts, known.counts)
    assert dict(zip(known.ids.tolist(), known.counts.tolist(), strict=True)) == {
        token: float(tokens[20:].count(token)) for token in tokens
    }


def test_counts_are_kept_only_for_penalties():
    assert state(prompt=[1], temperature=0.5, top_k=3).counts is None
