import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.decode.sampler_state import SequenceState
from isthmus.decode.sampling_steps import Batch, apply_steps, mask_logits
from isthmus.engine.plan import Draw, SequenceSeed
from isthmus.wire.sampling import DEFAULT_ORDER, BanRange, SamplingParams
from transformers.generation import logits_process as oracle

CPU = torch.device("cpu")
INF = math.inf


VOCAB_SIZE = 100_000
"""At least that of any logits here."""


def state(prompt=(), output=(), stop=(), phrases=None, vocab_size=VOCAB_SIZE, **params):
    seed = SequenceSeed(0, SamplingParams(**params), (0, 0), prompt, output, frozenset(stop))
    return SequenceState(seed, vocab_size, CPU, phrases)


def run(logits, *rows, guide=None):
    batch = Batch.of(rows, [Draw(0, row.num_output) for row in rows], CPU)
    masked = mask_logits(torch.as_tensor(logits, dtype=torch.float32), batch, [guide] * len(rows))
    return apply_steps(masked, batch)


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
        ({"top_p": 0.0}, [1]),
        ({"tfs": 0.0}, [1]),
        ({"typical_p": 0.0}, [1]),
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


def test_history_is_kept_only_where_it_is_read():
    assert state(prompt=[1], temperature=0.5, top_k=3).history is None
    assert state(prompt=[1], presence_penalty=0.5).history is not None


BANS = {
    "allowed_token_ids": ({"allowed_token_ids": (0, 33, 63)}, {0, 33, 63}),
    "custom_token_bans": ({"custom_token_bans": (0, 31, 32)}, set(range(70)) - {0, 31, 32}),
    "both": ({"allowed_token_ids": (0, 9, 33), "custom_token_bans": (0,)}, {9, 33}),
}


@pytest.mark.parametrize(("params", "allowed"), BANS.values(), ids=BANS)
def test_banned_tokens_never_come(params, allowed):
    assert kept(run(torch.zeros(1, 70), state(vocab_size=70, **params))) == [sorted(allowed)]


def test_a_request_that_allows_no_token_is_refused():
    with pytest.raises(ValueError, match="leave no token"):
        state(vocab_size=70, allowed_token_ids=(3,), custom_token_bans=(3,))


def test_ranges_of_bans_name_tokens_of_the_vocabulary():
    with pytest.raises(ValueError, match="token_ban_ranges 70 is not in the vocabulary"):
        state(vocab_size=70, token_ban_ranges=(BanRange((5, 70), 0, 3),))


@pytest.mark.parametrize("name", ["allowed_token_ids", "custom_token_bans"])
def test_bans_of_unknown_tokens_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} 70 is not in the vocabulary"):
        state(vocab_size=70, **{name: (70,)})


def words(*tokens):
    """Of guidance, for 70 tokens."""
    allowed = np.zeros(96, dtype=bool)
    allowed[list(tokens)] = True
    return np.packbits(allowed, bitorder="little").view(np.uint32)


def test_guidance_and_bans_act_together():
    assert kept(run(torch.zeros(1, 70), state(vocab_size=70, custom_token_bans=(3, 4)), guide=words(2, 3, 69))) == [
        [2, 69]
    ]


def test_guidance_wins_where_bans_would_leave_nothing():
    assert kept(run(torch.zeros(1, 70), state(vocab_size=70, custom_token_bans=(3,)), guide=words(3))) == [[3]]


def test_min_tokens_yields_where_only_the_end_is_left():
    row = state(stop=[3], min_tokens=5, vocab_size=70)
    assert kept(run(torch.zeros(1, 70), row, guide=words(3))) == [[3]]
    assert kept(run(torch.zeros(1, 70), row, guide=words(3, 4))) == [[4]]


def test_bans_of_a_draw_take_tokens_out_unless_nothing_were_left():
    rows = [state(), state(allowed_token_ids=(1, 3), vocab_size=5), state(stop=[4], min_tokens=1), state()]
    bans = [(0, 2), (1, 3), (0, 1, 2, 3), ()]
    batch = Batch.of(rows, [Draw(0, 0, bans=ids) for ids in bans], CPU)
    masked = mask_logits(torch.zeros(4, 5), batch, [None] * 4)
    assert kept(masked) == [[1, 3, 4], [1, 3], [4], [0, 1, 2, 3, 4]]
    assert kept(mask_logits(torch.zeros(2, 5), batch[torch.tensor([3, 0])], [None] * 2)) == [[0, 1, 2, 3, 4], [1, 3, 4]]


def test_dry_lowers_what_would_go_on_with_a_repetition():
    dry = {"dry_multiplier": 0.5, "dry_allowed_length": 1, "dry_sequence_breakers": ()}
    rows = [state(prompt=[1, 2, 1], **dry), state(prompt=[2, 2, 2, 2], **dry), state(prompt=[0, 1, 2], **dry)]
    expected = [[1.0, 1.0, 0.5], [1.0, 1.0, 1 - 0.5 * 1.75**2], [1.0, 1.0, 1.0]]
    assert run([[1.0, 1.0, 1.0]] * 3, *rows).tolist() == expected


class OneWord:
    """Stands in for the words of a tokenizer: every string is token 3."""

    def bad_words(self, strings):
        return [(3,) for _ in strings]


def test_repeated_ngrams_and_bad_words_are_banned():
    row = state(prompt=[0, 1, 0], phrases=OneWord(), no_repeat_ngram_size=2, bad_words=("x",))
    assert kept(run(torch.zeros(1, 5), row)) == [[0, 2, 4]]


def test_no_ban_takes_the_last_token():
    row = state(prompt=[0, 1, 2], no_repeat_ngram_size=1)
    assert kept(run([[0.0, -INF, 1.0]], row)) == [[0, 2]]


def test_a_drawn_token_is_history():
    row = state(prompt=[0, 1], no_repeat_ngram_size=2)
    assert kept(run(torch.zeros(1, 3), row)) == [[0, 1, 2]]
    row.append(0)
    assert kept(run(torch.zeros(1, 3), row)) == [[0, 2]]


def test_repetition_with_a_range_and_a_slope():
    """Of the last two tokens the older is divided by 1 + (2 − 1) × 0.5."""
    row = state(prompt=[0, 1, 2], repetition_penalty=2.0, repetition_penalty_range=2, repetition_penalty_slope=0.5)
    assert run([[4.0, 6.0, 4.0, 4.0]] * 2, row, state()).tolist() == [[4.0, 4.0, 2.0, 4.0], [4.0, 6.0, 4.0, 4.0]]


def test_orders_of_different_rows_do_not_mix():
    """Of (2, 1, 0, −1): top-k 2 then temperature or the other way is the same; min-p 0.3 keeps 2 at T = 1, 3 at 2."""
    first = tuple(step for step in DEFAULT_ORDER if step != "temperature")
    hot = {"temperature": 2.0, "min_p": 0.3}
    rows = [state(**hot), state(**hot, temperature_last=True), state(**hot, sampler_priority=(*first, "temperature"))]
    assert kept(run([[2.0, 1.0, 0.0, -1.0]] * 3, *rows)) == [[0, 1, 2], [0, 1], [0, 1]]


def test_top_k_of_any_size_is_taken():
    assert kept(run(torch.zeros(1, 5), state(top_k=2**63 - 1))) == [[0, 1, 2, 3, 4]]
