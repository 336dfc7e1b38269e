"""What a sampler leaves of a line, written down in one pass, as a Triton device function of one program."""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .sampling_draw import keep
from .sampling_line import put, tile_of
from .sampling_program import CURVE, DYNATEMP, PENALTIES, QUADRATIC, SMOOTHING, TEMPERATURE, TYPICAL_P, XTC
from .sampling_row import order_key, penalise
from .sampling_typical import nearness

_INF: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def rewrite(op, line, moves, best, mean, scale, kept, slot, TILE: tl.constexpr):
    """(how many tokens are left, the largest logit). `kept` is what `keep` takes: of logits and places, for typical-p
    of nearness and ids, for XTC what is removed but for one place. `moves`: what is left moves to the front."""
    num, top = line[2] * 0, tl.full((TILE,), -_INF, tl.float32)
    tl.debug_barrier()
    for start in range(0, line[2], TILE):
        values, ids, inside = tile_of(line, start, TILE)
        places = start + tl.arange(0, TILE)
        if (op == TEMPERATURE) | (op == DYNATEMP):
            values = tl.div_rn(values, scale)
        elif op == QUADRATIC:
            values = _bend(values, best, slot[1])
        elif op == PENALTIES:
            values = penalise(values, tl.load(slot[3] + ids, mask=inside, other=0), slot[4])
        elif op == TYPICAL_P:
            values = tl.where(keep(nearness(values, best, mean), ids, kept) > -_INF, values, -_INF)
        elif op == XTC:
            values = tl.where((order_key(values) >= kept[0]) & (places != kept[2]), -_INF, values)
        else:
            values = keep(values, places, kept)
        num = put(line, start, values, ids, inside, num, moves, TILE)
        top = tl.maximum(top, values)
    tl.debug_barrier()
    return num, tl.max(top, 0)


@triton.jit
def _bend(values, best, numbers):
    """Smoothing: b − k d² + s d³ at d = l − b, k = factor (3 − curve) / 2, s = factor (curve − 1) / 2. −inf stays."""
    below = tl.where(values > -_INF, values - best, 0.0)
    factor, curve = tl.load(numbers + SMOOTHING), tl.load(numbers + CURVE)
    square, cube = (factor * (3 - curve) / 2).to(tl.float32), (factor * (curve - 1) / 2).to(tl.float32)
    bent = best + below * below * (cube * below - square)
    return tl.where(values > -_INF, bent, -_INF)
