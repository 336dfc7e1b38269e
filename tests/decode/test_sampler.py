import math

import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.decode.sampler_state import SequenceState
from isthmus.decode.sampling_steps import Batch, apply_steps, reshape
from isthmus.engine.plan import NO_TOKEN, Draw, SequenceSeed
from isthmus.kernels import gumbel_draw
from isthmus.kernels.philox import gumbel_noise
from isthmus.wire.noise import DRAW, philox_key
from isthmus.wire.sampling import SamplingParams

INF = math.inf
PENALISED = SamplingParams(
    temperature=1.2,
    top_k=60,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.4,
    frequency_penalty=0.3,
    logit_bias={3: 1.5},
    min_tokens=12,
)
GREEDY = SamplingParams(temperature=0.0)
PLAIN = SamplingParams()


def seed(seq_id, params=PLAIN, *, request_seed=1, choice=0, prompt=(5, 6, 7), output=(), stop=(2,)):
    key = philox_key(request_seed, 0, choice)
    return SequenceSeed(seq_id, params, key, prompt, output, frozenset(stop))


def randn(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def sample(sampler, logits, draws):
    return sampler.sample(logits, draws).token_ids


def run(sampler, seq_id, logits, start=0):
    """Tokens of one sequence, alone in its batch: row t of `logits` is its position start + t."""
    return [int(sample(sampler, row[None], [Draw(seq_id, start + t)])) for t, row in enumerate(logits)]


def draw_tokens(logits, keys, positions, epoch=0):
    positions = torch.tensor(positions)
    epochs = torch.full_like(positions, epoch)
    return gumbel_draw.draw_tokens(logits, torch.tensor(keys), positions, epochs, stream=DRAW)


def sampler_with(*seeds, vocab_size=200):
    sampler = Sampler(vocab_size)
    for one in seeds:
        sampler.admit(one)
    return sampler


def all_noise(keys, positions, vocab_size):
    ids = torch.arange(vocab_size).expand(len(keys), -1)
    position = torch.tensor(positions)
    return gumbel_noise(torch.tensor(keys), position, torch.zeros_like(position), ids, stream=DRAW)


KEYS = [philox_key(9, 0, choice) for choice in range(8)]


def assert_draws_are_those_of_all_noise(logits, keys, positions):
    expected = (logits + all_noise(keys, positions, logits.shape[-1])).max(dim=-1).indices
    assert torch.equal(draw_tokens(logits, keys, positions), expected)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 20.0, 1000.0, 1e9, 1e30])
@pytest.mark.parametrize("masked_from", [2999, 1500, 100, 1])
def test_a_draw_equals_that_of_all_noise(scale, masked_from):
    logits = randn(8, 2999, scale=scale)
    logits[:, masked_from:] = -INF
    logits[1:3] *= 0.1
    assert_draws_are_those_of_all_noise(logits, KEYS, list(range(8)))


@pytest.mark.parametrize("offset", [0.0, 3e4, -1e7])
def test_a_draw_equals_that_of_all_noise_where_rounding_makes_ties(offset):
    """At 3e4 and −1e7 scores are multiples of 2⁻⁹ and of 1."""
    logits = randn(8, 4000, scale=0.5) + offset
    for position in range(10):
        assert_draws_are_those_of_all_noise(logits, KEYS, [position] * 8)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_batch_of_a_real_size_equals_all_noise(scale):
    """Eleven wide rows, more than are sieved in one go, among narrow ones."""
    logits = randn(16, 49_152, scale=scale)
    logits[::3, 1000:] = -INF
    logits[1, :49_000] = -INF
    keys = [philox_key(4, 0, choice) for choice in range(16)]
    assert_draws_are_those_of_all_noise(logits, keys, list(range(16)))


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 4, 5, 6, 7, 9])
def test_small_vocabularies_equal_all_noise(vocab_size):
    assert_draws_are_those_of_all_noise(randn(40, vocab_size), KEYS * 5, list(range(40)))


@pytest.mark.parametrize(("position", "gap"), [*((position, 10) for position in range(5)), (1805, 23)])
@pytest.mark.parametrize("rest", [-INF, -100.0, -22.0])
def test_an_unlikely_token_with_the_largest_noise_wins(position, gap, rest):
    """The token with the least noise is far ahead, but only until that noise is added. At position 1805 the noise of
    id 61004 is 21.08, that of word 3."""
    noise = all_noise(KEYS[:1], [position], 100_000)
    unlikely, likely = int(noise.argmax()), int(noise.argmin())
    logits = torch.full_like(noise, rest)
    logits[0, likely] = 0.0
    logits[0, unlikely] = noise[0, likely] - noise[0, unlikely] + 1e-4
    assert logits[0, unlikely] < -gap
    assert draw_tokens(logits, KEYS[:1], [position]).tolist() == [unlikely]


@pytest.mark.parametrize("masked", [[], [0, 1, 2], list(range(300, 3000)), list(range(2990))])
def test_equal_scores_give_the_lowest_id(masked):
    logits = -all_noise(KEYS, [0] * 8, 3000)
    logits[:, masked] = -INF
    lowest = min(set(range(3000)) - set(masked))
    assert draw_tokens(logits, KEYS, [0] * 8).tolist() == [lowest] * 8


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=1e-6), SamplingParams(top_k=1)])
def test_equal_largest_logits(params):
    logits = torch.zeros(1, 200)
    logits[0, [50, 90]] = 40.0
    tokens = {run(sampler_with(seed(0, params, request_seed=s)), 0, logits)[0] for s in range(20)}
    assert tokens == ({50, 90} if params.top_k == 1 else {50})


def critical_value(degrees, z=3.09):
    """Of chi-square at p = 0.001 (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + z * math.sqrt(part)) ** 3


def chi_square(tokens, probabilities):
    alive = probabilities > 0
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    assert counts[~alive].sum() == 0
    expected = probabilities[alive] * len(tokens)
    return float(((counts[alive] - expected) ** 2 / expected).sum()), int(alive.sum()) - 1


def many_draws(line, num_keys=20, num_positions=10_000):
    """One draw from the same logits for every position of every key."""
    batch = line.expand(num_positions, -1)
    return torch.stack(
        [draw_tokens(batch, [philox_key(key, 0, 0)] * num_positions, range(num_positions)) for key in range(num_keys)]
    )


def twelve_tokens(**params):
    """Logits of 12 tokens among 128, after the steps."""
    logits = torch.full((1, 128), -INF)
    logits[0, 3:123:10] = randn(12, scale=1.2)
    row = SequenceState(seed(0, SamplingParams(**params)), 128, torch.device("cpu"))
    batch = Batch.of([row], [Draw(0, 0)], torch.device("cpu"))
    return reshape(apply_steps(logits, batch), batch)[0]


@pytest.mark.parametrize("params", [{}, {"top_p": 0.8}, {"temperature": 0.6, "top_k": 7}], ids=["plain", "p", "k"])
def test_200_000_draws_follow_the_softmax(params):
    line = twelve_tokens(**params)
    value, degrees = chi_square(many_draws(line).flatten(), line.double().softmax(0))
    assert 3 <= degrees <= 11
    assert value < critical_value(degrees)


def test_neighbouring_positions_are_independent():
    line = twelve_tokens(top_k=4)
    tokens = many_draws(line, num_keys=6)
    p = line.double().softmax(0)
    pairs = tokens[:, :-1:2].flatten() * 128 + tokens[:, 1::2].flatten()
    value, degrees = chi_square(pairs, torch.outer(p, p).flatten())
    assert degrees == 15
    assert value < critical_value(degrees)


def test_four_ids_of_one_counter_follow_the_softmax():
    line = torch.full((128,), -INF)
    line[64:68] = torch.tensor([0.3, -0.5, 0.9, 0.0])
    value, degrees = chi_square(many_draws(line).flatten(), line.double().softmax(0))
    assert degrees == 3
    assert value < critical_value(degrees)


def test_a_wide_distribution_is_followed_too():
    """In the path for rows with many candidates."""
    line = randn(40, scale=1.0)
    tokens = draw_tokens(line.expand(60_000, -1), [philox_key(3, 0, 0)] * 60_000, range(60_000))
    value, degrees = chi_square(tokens, line.double().softmax(0))
    assert degrees == 39
    assert value < critical_value(degrees)


@pytest.mark.parametrize("params", [PLAIN, PENALISED])
def test_the_same_seed_gives_the_same_tokens(params):
    logits = randn(40, 200)
    first, second = (run(sampler_with(seed(4, params)), 4, logits) for _ in range(2))
    assert first == second
    assert len(set(first)) > 5


def test_seed_prompt_and_choice_each_give_other_tokens():
    logits = randn(30, 200, scale=1.0)
    keys = [philox_key(1, 0, 0), philox_key(2, 0, 0), philox_key(1, 1, 0), philox_key(1, 0, 1)]
    runs = {tuple(draw_tokens(logits, [key] * 30, range(30)).tolist()) for key in keys}
    assert len(runs) == len(keys)


CROWD = [
    PLAIN,
    GREEDY,
    PENALISED,
    SamplingParams(temperature=0.3),
    SamplingParams(top_p=0.7),
    SamplingParams(min_p=0.1),
]


def test_a_sequence_draws_the_same_alone_and_among_31_others():
    num_steps, vocab_size = 6, 1003
    seeds = [seed(i, CROWD[i % len(CROWD)], request_seed=i // 8, choice=i % 8) for i in range(32)]
    logits = randn(num_steps, 32, vocab_size)
    crowd = sampler_with(*seeds, vocab_size=vocab_size)
    together = [sample(crowd, logits[t], [Draw(i, t) for i in range(32)]).tolist() for t in range(num_steps)]
    for i, one in enumerate(seeds):
        alone = run(sampler_with(one, vocab_size=vocab_size), i, logits[:, i])
        assert alone == [tokens[i] for tokens in together]


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_a_replay_goes_on_as_if_nothing_had_happened(cut):
    logits = randn(20, 200)
    whole = run(sampler_with(seed(1, PENALISED)), 1, logits)
    again = sampler_with(seed(8, PENALISED, output=whole[:cut]))
    assert run(again, 8, logits[cut:], start=cut) == whole[cut:]


def test_drawn_tokens_count_as_output():
    """Among equals, the presence penalty has each token come once before any comes twice."""
    one = seed(0, SamplingParams(temperature=0.0, presence_penalty=1.0), prompt=(1,))
    assert run(sampler_with(one, vocab_size=4), 0, torch.zeros(6, 4)) == [0, 1, 2, 3, 0, 0]


def test_min_tokens_holds_the_end_back():
    logits = torch.zeros(5, 10)
    logits[:, 2] = 50.0
    tokens = run(sampler_with(seed(0, SamplingParams(min_tokens=3)), vocab_size=10), 0, logits)
    assert 2 not in tokens[:3]
    assert tokens[3:] == [2, 2]


@pytest.mark.parametrize("params", [PLAIN, GREEDY, PENALISED])
def test_the_only_token_left_is_drawn(params):
    logits = torch.full((20, 200), -INF)
    logits[:, 77] = -3.0
    assert run(sampler_with(seed(0, params)), 0, logits) == [77] * 20


def test_no_draws_give_no_tokens():
    assert Sampler(50).sample(torch.empty(0, 50), []).token_ids.shape == (0,)


def test_logits_are_left_as_they_were():
    logits = randn(2, 200)
    before = logits.clone()
    sampler_with(seed(0, PENALISED), seed(1)).sample(logits, [Draw(0, 0), Draw(1, 0)])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_logits_of_a_broken_model_draw_nothing_and_leave_the_neighbours_alone(bad):
    logits = torch.zeros(3, 200)
    draws = [Draw(i, 0) for i in range(3)]
    first, _, last = sampler_with(*(seed(i) for i in range(3))).sample(logits, draws).token_ids.tolist()
    logits[1, 9] = bad
    tokens = sampler_with(*(seed(i) for i in range(3))).sample(logits, draws).token_ids.tolist()
    assert tokens == [first, NO_TOKEN, last]


@pytest.mark.parametrize(
    ("params", "stop"),
    [(SamplingParams(logit_bias={200: 1.0}), ()), (SamplingParams(logit_bias={-1: 1.0}), ()), (PLAIN, (200,))],
)
def test_token_ids_outside_the_vocabulary_are_refused(params, stop):
    with pytest.raises(ValueError, match="not in the vocabulary of 200 tokens"):
        Sampler(200).admit(seed(0, params, stop=stop))


def test_a_position_out_of_turn_is_a_bug():
    sampler = sampler_with(seed(0))
    with pytest.raises(AssertionError):
        sampler.sample(torch.zeros(1, 200), [Draw(0, 1)])


def test_a_retired_id_can_be_admitted_again_and_starts_anew():
    logits = randn(5, 200)
    sampler = sampler_with(seed(0, PENALISED))
    first = run(sampler, 0, logits)
    sampler.retire(0)
    sampler.admit(seed(0, PENALISED))
    assert run(sampler, 0, logits) == first


@pytest.mark.parametrize("params", [{"dry_multiplier": 0.8}, {"bad_words": ("x",)}])
def test_strings_are_refused_without_a_tokenizer(params):
    with pytest.raises(ValueError, match="needs the model's tokenizer"):
        Sampler(200).admit(seed(0, SamplingParams(**params)))


def test_logprobs_are_those_of_the_model_or_of_what_was_drawn_from():
    logits, draws = randn(4, 200), [Draw(i, 0) for i in range(4)]
    asks = [{"logprobs": 3}, {"logprobs": 3, "logprobs_mode": "processed"}, {}, {"logprobs": 0}]
    samples = sampler_with(*(seed(i, SamplingParams(top_k=2, **ask)) for i, ask in enumerate(asks))).sample(
        logits, draws
    )
    raw = logits.double().log_softmax(-1)
    for i in (0, 3):
        assert samples.logprobs[i].chosen == pytest.approx(float(raw[i, samples.token_ids[i]]), abs=1e-6)
    assert [token for token, _ in samples.logprobs[0].top] == raw[0].topk(3).indices.tolist()
    two = logits[1].topk(2)
    expected = dict(zip(two.indices.tolist(), two.values.double().log_softmax(-1).tolist(), strict=True))
    assert dict(samples.logprobs[1].top) == pytest.approx(expected, abs=1e-6)
    assert samples.logprobs[2] is None
    assert samples.logprobs[3].top == ()
