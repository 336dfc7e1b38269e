"""Gumbel noise of vocabulary ids: g = −log(−log1p(−u)), u from the words of Philox4x32-10.

Row r, id i: key `keys[r]`, counter (stream, positions[r], rewind_epochs[r], i >> 2), word i & 3 of its output. `u` is
the word rounded to fp32, scaled by 2⁻³² and clamped to [2⁻³³, 1 − 2⁻²⁴]; the logarithms are taken in fp64 and rounded
to fp32 once, so an element's bits do not depend on its place in the tensor (vectorised and scalar logarithms differ in
the last bit).

Words are unsigned 32 bits held in int64. A product of two wraps around in int64, but its bits are right; the shift
then drags in the sign, which a mask takes off. Low halves keep the high bits of their product until that same mask.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import torch
from torch import Tensor

GUMBEL_MIN = -2.8115408420562744
"""Noise of the largest word, 0xFFFF_FFFF."""
GUMBEL_MAX = 22.873857498168945
"""Noise of word 0."""
CEILING_SPAN = 2.82
"""A `gumbel_ceiling` is at most this far above the noise."""

Words4 = tuple[Tensor, Tensor, Tensor, Tensor]

_CEILING_SLACK = 0.004
_MASK = 0xFFFF_FFFF
_M0, _M1 = 0xD251_1F53, 0xCD9E_8D57
_W0, _W1 = 0x9E37_79B9, 0xBB67_AE85
_ROUNDS = 10


def gumbel_noise(keys: Tensor, positions: Tensor, rewind_epochs: Tensor, ids: Tensor, *, stream: int) -> Tensor:
    """fp32 [R, N] for `keys` [R, 2], `positions` [R] and `rewind_epochs` [R], `ids` [R, N]; all int64, all words
    of 32 bits. What is the same for all ids of a row is computed once a row."""
    return gumbel(_words_of_ids(keys, positions, rewind_epochs, ids, stream))


def uniform_noise(keys: Tensor, positions: Tensor, rewind_epochs: Tensor, ids: Tensor, *, stream: int) -> Tensor:
    """u, fp32 [R, N], in place of its `gumbel_noise`."""
    return _scale(_words_of_ids(keys, positions, rewind_epochs, ids, stream).float())


def noise_ceiling(keys: Tensor, positions: Tensor, rewind_epochs: Tensor, num_ids: int, *, stream: int) -> Tensor:
    """fp32 [R, num_ids]: `gumbel_ceiling` of the noise of ids 0 … num_ids − 1, four of them to a counter."""
    groups = torch.arange((num_ids + 3) // 4, device=keys.device).expand(len(keys), -1)
    ceiling = torch.empty(*groups.shape, 4, device=keys.device)
    for lane, words in enumerate(_words(keys, positions, rewind_epochs, groups, stream)):
        ceiling[..., lane] = words
    return gumbel_ceiling(ceiling).flatten(1)[:, :num_ids]


def philox4x32(counter: Words4, key: tuple[Tensor, Tensor]) -> Words4:
    """Philox4x32-10: four int64 [R, N] of int64 words: each [R, 1] or [R, N], the key [R, 1].

    Products take the place of their factors: memory touched is what it costs beside arithmetic."""
    c0, c1, c2, c3 = counter[0].clone(), counter[1], counter[2].clone(), counter[3]
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0.mul_(_M0), c2.mul_(_M1)
        c0 = _mix(p1, c1, k0)
        c2 = _mix(p0, c3, k1)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1.bitwise_and_(_MASK), c2, c3.bitwise_and_(_MASK)


def gumbel(words: Tensor) -> Tensor:
    """fp32 noise of int64 words below 2³², of the same shape."""
    return _scale(words.float()).double().neg_().log1p_().neg_().log_().neg_().float()


def gumbel_ceiling(words: Tensor) -> Tensor:
    """A cheap number in [noise, noise + CEILING_SPAN] for each of `words`, rounded to fp32, whose place it takes.

    u ≤ −log1p(−u), so −log u is never below the noise, and nowhere further above it than −GUMBEL_MIN, at the largest
    u. `_CEILING_SLACK` covers the error of a plain fp32 logarithm on either side."""
    return _scale(words).log_().neg_().add_(_CEILING_SLACK)


def _words_of_ids(keys: Tensor, positions: Tensor, rewind_epochs: Tensor, ids: Tensor, stream: int) -> Tensor:
    words = torch.stack(_words(keys, positions, rewind_epochs, ids >> 2, stream), dim=-1)
    return words.gather(-1, (ids & 3)[..., None]).squeeze(-1)


def _words(keys: Tensor, positions: Tensor, rewind_epochs: Tensor, groups: Tensor, stream: int) -> Words4:
    """The words of ids 4g, 4g + 1, 4g + 2 and 4g + 3, each [R, N], for `groups` g [R, N]."""
    assert keys.shape == (len(groups), 2)
    assert positions.shape == rewind_epochs.shape == (len(groups),)
    assert {keys.dtype, positions.dtype, rewind_epochs.dtype, groups.dtype} == {torch.int64}
    streams = torch.full_like(positions, stream)
    return philox4x32(
        (streams[:, None], positions[:, None], rewind_epochs[:, None], groups), (keys[:, :1], keys[:, 1:])
    )


def _scale(words: Tensor) -> Tensor:
    """u of words already rounded to fp32, in place."""
    return words.mul_(2.0**-32).clamp_(2.0**-33, 1 - 2.0**-24)


def _mix(product: Tensor, word: Tensor, key: Tensor) -> Tensor:
    """(high half of `product`) ^ `word` ^ `key`, in 32 bits."""
    high = product >> 32
    if word.numel() > high.numel():
        return (high.bitwise_xor_(key) ^ word).bitwise_and_(_MASK)
    return high.bitwise_xor_(word).bitwise_xor_(key).bitwise_and_(_MASK)
