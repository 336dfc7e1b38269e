"""The noise in Triton is that of kernels/philox.py, to the bit."""

import pytest
import torch
import triton
import triton.language as tl
from isthmus.kernels.philox import gumbel, gumbel_noise
from isthmus.kernels.philox_triton import (
    NEAR_SLACK,
    gumbel_exact,
    gumbel_near,
    philox_tile,
    philox_word,
    philox_words,
)
from isthmus.tests.wire.noise_vectors import NOISE, RANDOM123_PHILOX4X32_10, WORDS


@triton.jit
def words_kernel(numbers, out, STREAM: tl.constexpr):
    quads = tl.load(numbers + 2) + tl.arange(0, 2)
    key0, key1 = tl.load(numbers + 3), tl.load(numbers + 4)
    w0, w1, w2, w3 = philox_words(tl.load(numbers), tl.load(numbers + 1), quads, key0, key1, STREAM)
    place = out + tl.arange(0, 2) * 4
    tl.store(place, w0.to(tl.int32, bitcast=True))
    tl.store(place + 1, w1.to(tl.int32, bitcast=True))
    tl.store(place + 2, w2.to(tl.int32, bitcast=True))
    tl.store(place + 3, w3.to(tl.int32, bitcast=True))


@triton.jit
def noise_kernel(numbers, out, token, NUM_IDS: tl.constexpr):
    position, epoch = tl.load(numbers), tl.load(numbers + 1)
    quads = tl.load(numbers + 2) + tl.arange(0, NUM_IDS // 4)
    key0, key1 = tl.load(numbers + 3), tl.load(numbers + 4)
    words = philox_tile(position, epoch, quads, key0, key1, 0, NUM_IDS)
    tl.store(out + tl.arange(0, NUM_IDS), gumbel_exact(words))
    alone = philox_word(position, epoch, tl.load(token), key0, key1, 0)
    tl.store(out + NUM_IDS, gumbel_exact(alone))


@triton.jit
def gumbel_kernel(words, exact, near, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words + place, mask=place < n, other=0).to(tl.uint32, bitcast=True)
    tl.store(exact + place, gumbel_exact(word), mask=place < n)
    tl.store(near + place, gumbel_near(word), mask=place < n)


def as_int32(values, device):
    """Words of 32 bits as the int32 of the same bits."""
    return torch.tensor(values, dtype=torch.int64).to(torch.uint32).view(torch.int32).to(device)


def noise_in_triton(device, key, position, epoch, first_id, token, num_ids=64):
    out = torch.full((num_ids + 1,), torch.nan, device=device)
    numbers = as_int32([position, epoch, first_id // 4, *key], device)
    noise_kernel[(1,)](numbers, out, torch.tensor(token, device=device, dtype=torch.int32), NUM_IDS=num_ids)
    return out.cpu()


def gumbel_in_triton(device, words):
    """(exact, near) noise of int64 words."""
    bits = words.to(torch.uint32).view(torch.int32).to(device)
    exact, near = torch.full((2, len(words)), torch.nan, device=device)
    gumbel_kernel[(triton.cdiv(len(words), 4096),)](bits, exact, near, len(words), BLOCK=4096)
    return exact.cpu(), near.cpu()


def check_published_words(device):
    for counter, key, expected in RANDOM123_PHILOX4X32_10:
        out = torch.zeros(8, dtype=torch.int32, device=device)
        words_kernel[(1,)](as_int32([*counter[1:], *key], device), out, STREAM=counter[0])
        assert out[:4].cpu().view(torch.uint32).tolist() == list(expected)


def check_golden_noise(device):
    for key, (stream, position, epoch, token), _, _, g in NOISE:
        assert stream == 0
        out = noise_in_triton(device, key, position, epoch, token & ~3, token)
        assert out[token & 3] == out[-1] == float.fromhex(g)


def check_a_tile_is_in_order(device):
    key, position, first = (0x8FF2C389, 0x82AE08C5), 77, 128
    out = noise_in_triton(device, key, position, 1, first, first + 5)
    one = torch.tensor([position])
    ids = torch.arange(first, first + 64)[None]
    expected = gumbel_noise(torch.tensor([key]), one, torch.ones_like(one), ids, stream=0)[0]
    assert torch.equal(out[:-1], expected)


def many_words(num_random):
    powers = (2 ** torch.arange(32))[:, None] + torch.arange(-2, 3)
    some = torch.randint(0, 2**32, (num_random,), generator=torch.Generator().manual_seed(0))
    ends = torch.arange(2000)
    return torch.cat((powers.flatten().clamp(min=0), ends, 2**32 - 1 - ends, some))


def check_noise_of_words(device, num_random):
    words = many_words(num_random)
    exact, near = gumbel_in_triton(device, words)
    assert torch.equal(exact, gumbel(words))
    assert (near.double() - exact).abs().max() < NEAR_SLACK.value / 10


def check_the_ends(device):
    words, _, expected = zip(*WORDS, strict=True)
    assert gumbel_in_triton(device, torch.tensor(words))[0].tolist() == [float.fromhex(g) for g in expected]


CHECKS = [check_published_words, check_golden_noise, check_a_tile_is_in_order, check_the_ends]


@pytest.mark.interpreter
@pytest.mark.parametrize("check", CHECKS)
def test_noise_interpreted(check):
    check("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS)
def test_noise_compiled(check):
    check("cuda")


@pytest.mark.interpreter
def test_noise_of_many_words_interpreted():
    check_noise_of_words("cpu", 20_000)


@pytest.mark.gpu
def test_noise_of_many_words_compiled():
    check_noise_of_words("cuda", 4_000_000)
