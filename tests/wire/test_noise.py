import math
import struct

import pytest
from isthmus.tests.wire.noise_vectors import KEYS, NOISE, RANDOM123_PHILOX4X32_10, WORDS
from isthmus.wire.noise import DRAW, gumbel, noise_word, philox4x32, philox_key, uniform


@pytest.mark.parametrize(("counter", "key", "output"), RANDOM123_PHILOX4X32_10)
def test_philox_gives_the_published_answers(counter, key, output):
    assert philox4x32(counter, key) == output


@pytest.mark.parametrize(("request_parts", "key"), KEYS)
def test_keys_do_not_change(request_parts, key):
    assert philox_key(*request_parts) == key


@pytest.mark.parametrize(("key", "place", "word", "u", "g"), NOISE)
def test_noise_does_not_change(key, place, word, u, g):
    assert place[0] == DRAW
    assert noise_word(key, *place) == word
    assert (uniform(word), gumbel(word)) == (float.fromhex(u), float.fromhex(g))


@pytest.mark.parametrize("group", [0, 1, 12287, 2**30 - 1])
def test_four_neighbouring_ids_share_a_counter(group):
    words = [noise_word((3, 4), DRAW, 5, 6, 4 * group + lane) for lane in range(4)]
    assert tuple(words) == philox4x32((DRAW, 5, 6, group), (3, 4))
    assert len(set(words)) == 4


@pytest.mark.parametrize(("word", "u", "g"), WORDS)
def test_the_ends_are_clamped_and_finite(word, u, g):
    assert (uniform(word), gumbel(word)) == (float.fromhex(u), float.fromhex(g))


def test_every_part_of_a_request_changes_the_key():
    parts = [(seed, prompt, choice) for seed in (0, 1, 2**63) for prompt in range(4) for choice in range(4)]
    assert len({philox_key(*part) for part in parts}) == len(parts)


@pytest.mark.parametrize("parts", [(-1, 0, 0), (2**64, 0, 0), (0, 2**32, 0), (0, 0, -1)])
def test_numbers_that_do_not_fit_are_refused(parts):
    with pytest.raises(struct.error):
        philox_key(*parts)


def test_noise_has_the_moments_of_a_gumbel():
    noise = [gumbel(noise_word((7, 11), DRAW, 0, 0, token)) for token in range(20_000)]
    mean = sum(noise) / len(noise)
    variance = sum((g - mean) ** 2 for g in noise) / len(noise)
    assert mean == pytest.approx(0.5772, abs=4 * math.sqrt(math.pi**2 / 6 / len(noise)))
    assert variance == pytest.approx(math.pi**2 / 6, rel=0.06)
