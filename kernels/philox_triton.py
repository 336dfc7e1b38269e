"""The noise of kernels/philox.py as Triton device functions: the same bits.

Words are Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), uint32. `gumbel_exact`
takes g = −log(−log1p(−u)) in fp64 and rounds to fp32 once. Its logarithms may differ from a libm's in the last bit of
fp64, which reaches the rounded result for about one word in 2²⁸.

−log1p(−u) needs no log1p: 1 − u is exact in fp64 from u = 2⁻²⁹ on, and below 2⁻²⁰ three terms of its series leave a
relative error under 2⁻⁶².
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .dispatch import INTERPRETED

_M0: tl.constexpr = tl.constexpr(0xD251_1F53)
_M1: tl.constexpr = tl.constexpr(0xCD9E_8D57)
_W0: tl.constexpr = tl.constexpr(0x9E37_79B9)
_W1: tl.constexpr = tl.constexpr(0xBB67_AE85)
_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_U_SCALE: tl.constexpr = tl.constexpr(2.0**-32)
_U_MIN: tl.constexpr = tl.constexpr(2.0**-33)
_U_MAX: tl.constexpr = tl.constexpr(1 - 2.0**-24)

NEAR_SLACK: tl.constexpr = tl.constexpr(2.0**-12)
"""The noise is within this of `gumbel_near`, which errs by less than a tenth of it."""


@triton.jit
def philox_words(position, epoch, quads, key0, key1, STREAM: tl.constexpr):
    """Four uint32 [N], the words of ids 4q … 4q + 3 for `quads` q [N]; all arguments are int32, taken as 32 bits.

    What depends on no quad stays scalar."""
    c0, c1 = tl.full((), STREAM, tl.uint32), position.to(tl.uint32, bitcast=True)
    c2, c3 = epoch.to(tl.uint32, bitcast=True), quads.to(tl.uint32, bitcast=True)
    k0, k1 = key0.to(tl.uint32, bitcast=True).to(tl.uint64), key1.to(tl.uint32, bitcast=True).to(tl.uint64)
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * _M0, c2.to(tl.uint64) * _M1  # 32 × 32 → 64 bits: one instruction
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0.to(tl.uint32), p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def philox_tile(position, epoch, quads, key0, key1, STREAM: tl.constexpr, NUM_IDS: tl.constexpr):
    """uint32 [NUM_IDS]: the words of the ids of `quads` [NUM_IDS / 4], in order."""
    w0, w1, w2, w3 = philox_words(position, epoch, quads, key0, key1, STREAM)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (NUM_IDS,))


@triton.jit
def philox_word(position, epoch, token, key0, key1, STREAM: tl.constexpr):
    """The word of one id, a scalar."""
    w0, w1, w2, w3 = philox_words(position, epoch, token >> 2, key0, key1, STREAM)
    lane = token & 3
    return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))


@triton.jit
def gumbel_exact(words):
    """fp32 noise of uint32 `words`: two fp64 logarithms each, so for few of them."""
    u = uniform(words).to(tl.float64)
    exponential = tl.where(u < 2.0**-20, u * (1.0 + u * (0.5 + u * (1.0 / 3))), -tl.log(1.0 - u))
    return (-tl.log(exponential)).to(tl.float32)


@triton.jit
def gumbel_near(words):
    """fp32 within NEAR_SLACK of the noise of uint32 `words`, by approximate fp32 logarithms.

    Below 1/16 the logarithm's argument is too near 1: four terms of the series, relative error under 2⁻¹⁸."""
    u = uniform(words)
    series = u * tl.fma(u, tl.fma(u, tl.fma(u, 0.25, 1.0 / 3), 0.5), 1.0)
    exponential = tl.where(u < 0.0625, series, _log2_near(1.0 - u) * -_LN_2)
    return _log2_near(exponential) * -_LN_2


@triton.jit
def _log2_near(x):
    """Within 2⁻²² of log₂ of a normal fp32, absolute near 1 and relative elsewhere: one instruction, where tl.log2 is
    a polynomial of twenty."""
    if _INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def uniform(words):
    """fp32 u of uint32 `words`."""
    return tl.minimum(tl.maximum(words.to(tl.float32) * _U_SCALE, _U_MIN), _U_MAX)
