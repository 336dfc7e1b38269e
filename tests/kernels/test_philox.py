import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.kernels.philox import (
    CEILING_SPAN,
    GUMBEL_MAX,
    GUMBEL_MIN,
    gumbel,
    gumbel_ceiling,
    gumbel_noise,
    noise_ceiling,
    philox4x32,
)
from isthmus.tests.wire.noise_vectors import NOISE, RANDOM123_PHILOX4X32_10, WORDS
from isthmus.wire import noise

WORD = st.integers(0, 2**32 - 1)


def words(values):
    return torch.tensor(values, dtype=torch.int64)[:, None]


def test_words_are_the_published_answers():
    counters, keys, outputs = zip(*RANDOM123_PHILOX4X32_10, strict=True)
    counter = tuple(words(column) for column in zip(*counters, strict=True))
    key = tuple(words(column) for column in zip(*keys, strict=True))
    assert torch.cat(philox4x32(counter, key), dim=1).tolist() == [list(output) for output in outputs]


@settings(max_examples=50, deadline=None)
@given(st.tuples(WORD, WORD, WORD), st.tuples(WORD, WORD), st.lists(WORD, min_size=1, max_size=40))
def test_words_equal_python_and_leave_the_counter_alone(row, key, groups):
    counter = (words(row[:1]), words(row[1:2]), words(row[2:]), torch.tensor([groups]))
    result = philox4x32(counter, (words(key[:1]), words(key[1:])))
    assert torch.cat(result).T.tolist() == [list(noise.philox4x32((*row, group), key)) for group in groups]
    assert [part.flatten().tolist() for part in counter] == [[row[0]], [row[1]], [row[2]], groups]


@settings(max_examples=50, deadline=None)
@given(st.tuples(WORD, WORD), WORD, WORD, st.lists(WORD, min_size=1, max_size=40))
def test_noise_equals_python(key, position, epoch, ids):
    result = gumbel_noise(
        torch.tensor([key]), torch.tensor([position]), torch.tensor([epoch]), torch.tensor([ids]), stream=noise.DRAW
    )
    assert result.tolist() == [
        [noise.gumbel(noise.noise_word(key, noise.DRAW, position, epoch, token)) for token in ids]
    ]


def test_noise_does_not_change():
    keys, places, _, _, expected = zip(*NOISE, strict=True)
    stream, positions, epochs, ids = (torch.tensor(column) for column in zip(*places, strict=True))
    assert set(stream.tolist()) == {noise.DRAW}
    result = gumbel_noise(torch.tensor(keys), positions, epochs, ids[:, None], stream=noise.DRAW)
    assert result.dtype == torch.float32
    assert result.flatten().tolist() == [float.fromhex(g) for g in expected]


def test_the_ends_are_those_of_python():
    ends = torch.tensor([word for word, _, _ in WORDS])
    assert gumbel(ends).tolist() == [float.fromhex(g) for _, _, g in WORDS]
    assert gumbel(torch.tensor([0xFFFF_FFFF, 0])).tolist() == [GUMBEL_MIN, GUMBEL_MAX]


def test_noise_of_a_word_equals_python_to_the_bit():
    some = torch.randint(0, 2**32, (4001,), generator=torch.Generator().manual_seed(0))
    assert gumbel(some).tolist() == [noise.gumbel(word) for word in some.tolist()]


def test_a_ceiling_is_close_above_the_noise_of_every_kind_of_word():
    small, large = torch.arange(2**16), 2**32 - 1 - torch.arange(2**16)
    powers = (2 ** torch.arange(32))[:, None] + torch.arange(-2, 3)
    some = torch.randint(0, 2**32, (2**18,), generator=torch.Generator().manual_seed(1))
    every = torch.cat((small, large, powers.flatten().clamp(min=0), some))
    above = gumbel_ceiling(every.float()).double() - gumbel(every)
    assert above.min() > 0.003
    assert above.max() < CEILING_SPAN - 0.003


@pytest.mark.parametrize(("num_rows", "num_ids"), [(1, 1), (1, 3), (2, 4), (9, 5), (3, 1002), (2, 49_152)])
def test_ceilings_are_those_of_the_first_ids(num_rows, num_ids):
    keys, positions, epochs = (
        torch.arange(2 * num_rows).view(-1, 2),
        torch.arange(num_rows),
        torch.ones(num_rows).long(),
    )
    everything = gumbel_noise(keys, positions, epochs, torch.arange(num_ids).expand(num_rows, -1), stream=2)
    above = noise_ceiling(keys, positions, epochs, num_ids, stream=2) - everything
    assert above.shape == (num_rows, num_ids)
    assert above.min() >= 0
    assert above.max() <= CEILING_SPAN


def test_few_of_many_ids_are_within_a_span_of_the_highest_ceiling():
    keys, positions = torch.arange(64).view(-1, 2), torch.zeros(32, dtype=torch.int64)
    ceiling = noise_ceiling(keys, positions, positions, 10_000, stream=0)
    num_close = (ceiling >= ceiling.amax(dim=-1, keepdim=True) - CEILING_SPAN).sum(dim=-1)
    assert num_close.float().mean() < 25
    assert num_close.max() < 150


def critical_value(degrees, z=3.72):
    """Of chi-square at p = 0.0001 (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + z * math.sqrt(part)) ** 3


def assert_uniform(cells, num_cells):
    counts = torch.bincount(cells, minlength=num_cells).double()
    expected = len(cells) / num_cells
    assert float(((counts - expected) ** 2 / expected).sum()) < critical_value(num_cells - 1)


LANES = range(4)


@pytest.mark.parametrize("shift", [0, 13, 28], ids=["low bits", "middle bits", "high bits"])
def test_the_four_words_of_a_counter_are_independent(shift):
    """As pairs in one counter and in neighbouring ones, and all four together."""
    num_counters = 2**18
    counter = (words([0]), words([17]), words([0]), torch.arange(num_counters)[None])
    lanes = [(lane.flatten() >> shift) & 15 for lane in philox4x32(counter, (words([5]), words([6])))]
    for one in LANES:
        assert_uniform(lanes[one], 16)
        for other in LANES:
            if one < other:
                assert_uniform(lanes[one] * 16 + lanes[other], 256)
            assert_uniform(lanes[one][:-1] * 16 + lanes[other][1:], 256)
    assert_uniform(sum((lane & 7) * 8**place for place, lane in enumerate(lanes)), 8**4)


def test_noise_of_the_four_lanes_is_uncorrelated_in_the_winning_tail():
    """Large noise decides draws: how often two ids of one counter have it together, and each alone."""
    ids = torch.arange(2**20)[None]
    zero = torch.tensor([0])
    is_large = (gumbel_noise(torch.tensor([[8, 9]]), zero, zero, ids, stream=0) > 4).view(-1, 4).double()
    p = 1 - math.exp(-math.exp(-4))
    sd = math.sqrt(p * (1 - p) / len(is_large))
    assert (is_large.mean(dim=0) - p).abs().max() < 4 * sd
    correlation = torch.corrcoef(is_large.T) - torch.eye(4)
    assert correlation.abs().max() < 4 / math.sqrt(len(is_large))


@pytest.mark.parametrize("chosen", [[0], [5], [3, 999, 17], list(range(0, 1000, 7))])
def test_noise_of_an_id_does_not_depend_on_the_others(chosen):
    keys = torch.tensor([[1, 2], [2**32 - 1, 3], [1, 2]])
    positions, epochs = torch.tensor([0, 5, 6]), torch.tensor([0, 0, 1])
    everything = gumbel_noise(keys, positions, epochs, torch.arange(1000).expand(3, -1), stream=0)
    for row in range(3):
        one = slice(row, row + 1)
        part = gumbel_noise(keys[one], positions[one], epochs[one], torch.tensor([chosen]), stream=0)
        assert torch.equal(part[0], everything[row, chosen])


def test_stream_position_epoch_and_key_each_change_the_noise():
    ids = torch.arange(64)[None]
    zero, one = torch.tensor([0]), torch.tensor([1])
    key = torch.tensor([[0, 0]])
    variants = [
        gumbel_noise(key, zero, zero, ids, stream=0),
        gumbel_noise(key, zero, zero, ids, stream=1),
        gumbel_noise(key, one, zero, ids, stream=0),
        gumbel_noise(key, zero, one, ids, stream=0),
        gumbel_noise(torch.tensor([[1, 0]]), zero, zero, ids, stream=0),
        gumbel_noise(torch.tensor([[0, 1]]), zero, zero, ids, stream=0),
    ]
    assert len({tuple(v.flatten().tolist()) for v in variants}) == len(variants)
