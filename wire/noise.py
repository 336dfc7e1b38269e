"""Counter-based noise: a draw depends on its request's seed and its place in the output, on nothing else.

Words come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is a
hash of (request seed, prompt index, choice index); the counter is (stream, output position, rewind epoch, vocabulary
id >> 2). Its four output words belong to four neighbouring ids: id & 3 names the word. This pure Python form is the
definition; kernels/philox.py is the same in torch, and both are held to one table of golden vectors.
"""

import math
from hashlib import blake2b
from struct import Struct

Words2 = tuple[int, int]
Words4 = tuple[int, int, int, int]

DRAW = 0
"""The stream that draws tokens. Every other use of randomness gets a stream number of its own."""
XTC = 1
"""The stream of XTC's coin, the word of token id 0: XTC acts where its `uniform` is below xtc_probability."""

U_MIN = 2.0**-33
U_MAX = 1 - 2.0**-24

_MASK = 0xFFFF_FFFF
_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_KEY_STEPS = (0x9E37_79B9, 0xBB67_AE85)
_ROUNDS = 10

_SEED = Struct("<QII")
_KEY = Struct("<II")
_FLOAT32 = Struct("<f")


def philox_key(seed: int, prompt_index: int, choice_index: int) -> Words2:
    """The key of one sequence: `seed` is unsigned 64 bits, the indices are 32 bits and count from 0 in the request.

    Raises struct.error where a number does not fit.
    """
    digest = blake2b(_SEED.pack(seed, prompt_index, choice_index), digest_size=_KEY.size, person=b"isthmus.noise")
    first, second = _KEY.unpack(digest.digest())
    return first, second


def philox4x32(counter: Words4, key: Words2) -> Words4:
    """Ten rounds of Philox4x32; every word is unsigned 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def noise_word(key: Words2, stream: int, position: int, rewind_epoch: int, token_id: int) -> int:
    """The word that decides the noise of `token_id` at an output position."""
    return philox4x32((stream, position, rewind_epoch, token_id >> 2), key)[token_id & 3]


def uniform(word: int) -> float:
    """A 32-bit word as an fp32 in [2⁻³³, 1 − 2⁻²⁴]: rounded to fp32, scaled by 2⁻³², clamped."""
    return min(max(_round_to_float32(word) * 2.0**-32, U_MIN), U_MAX)


def gumbel(word: int) -> float:
    """Standard Gumbel noise of a 32-bit word, an fp32 from −2.8115 to 22.8739: g = −log(−log1p(−u)).

    u is `uniform(word)`. The logarithms are taken in fp64 and rounded to fp32 once, so that every libm agrees on
    the bits. Small words are large noise: the tail that wins draws is where fp32 is finest.
    """
    return _round_to_float32(-math.log(-math.log1p(-uniform(word))))


def _round_to_float32(value: float) -> float:
    rounded: float = _FLOAT32.unpack(_FLOAT32.pack(value))[0]
    return rounded
