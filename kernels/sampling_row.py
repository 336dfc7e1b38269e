"""What a sequence's parameters make of its logits, and the order of these, as Triton device functions.

A line is a tuple of pointers (logits fp32 [V], counts int32 [V], parameters fp32 [WORDS]) of one row of logits and its
slot; the latter two are None where logits are read as they are. They stay so: who reads them applies penalties and
temperature, which costs less than another pass.
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from . import sampling_params

_TINY: tl.constexpr = tl.constexpr(1e-300)
_INF: tl.constexpr = tl.constexpr(float("inf"))
_IN_PROMPT: tl.constexpr = tl.constexpr(sampling_params.IN_PROMPT)
_TEMPERATURE: tl.constexpr = tl.constexpr(sampling_params.TEMPERATURE)
_REPETITION: tl.constexpr = tl.constexpr(sampling_params.REPETITION)
_FREQUENCY: tl.constexpr = tl.constexpr(sampling_params.FREQUENCY)
_PRESENCE: tl.constexpr = tl.constexpr(sampling_params.PRESENCE)

LOWEST_KEY: tl.constexpr = tl.constexpr(-0x7F80_0001)
"""`order_key` of −inf."""
LOWEST_OPEN_KEY: tl.constexpr = tl.constexpr(-0x7F80_0000)
"""Of the least logit that is not: no mask has taken it out."""


@triton.jit
def order_key(values):
    """int32 in the order of fp32 `values`, which are not NaN; −0 is 0."""
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFF_FFFF)


@triton.jit
def log_of(x):
    """ln of fp64 `x` ≥ 0, −inf of 0."""
    return tl.where(x > 0, tl.log(tl.maximum(x, _TINY)), -_INF)


@triton.jit
def key_value(key):
    """The fp32 of an `order_key`."""
    return (key ^ ((key >> 31) & 0x7FFF_FFFF)).to(tl.float32, bitcast=True)


@triton.jit
def entry_key(values, ids):
    """int64 in the order of (value descending, id ascending), the first largest."""
    return (order_key(values).to(tl.int64) << 32) | ((~ids).to(tl.int64) & 0xFFFF_FFFF)


@triton.jit
def entry_id(entry):
    return (~entry).to(tl.int32)


@triton.jit
def load_logits(line, ids, inside):
    """fp32 logits of `ids` after penalties and temperature; −inf where not `inside`. NaN becomes +inf, what a broken
    row is known by."""
    row, _, _ = line
    return adjust_logits(tl.load(row + ids, mask=inside, other=-_INF), line, ids, inside)


@triton.jit
def adjust_logits(values, line, ids, inside):
    """`load_logits`, of values that were loaded."""
    _, counts, params = line
    if params is not None:
        if is_penalised(params):
            values = penalise(values, tl.load(counts + ids, mask=inside, other=0), params)
        temperature = tl.load(params + _TEMPERATURE)
        if (temperature != 0) & (temperature != 1):
            values = tl.div_rn(values, temperature)
    return tl.where(values < _INF, values, _INF)


@triton.jit
def is_penalised(params):
    changes = tl.load(params + _FREQUENCY) != 0
    return (tl.load(params + _REPETITION) != 1) | changes | (tl.load(params + _PRESENCE) != 0)


@triton.jit
def penalise(values, counts, params):
    """Repetition over prompt and output, then frequency and presence over the output."""
    repetition = tl.load(params + _REPETITION)
    num_output = counts & (_IN_PROMPT - 1)
    repeated = tl.where(values > 0, tl.div_rn(values, repetition), values * repetition)
    present = tl.where(num_output > 0, tl.load(params + _PRESENCE), 0.0)
    penalised = repeated - num_output.to(tl.float32) * tl.load(params + _FREQUENCY) - present
    return tl.where(counts != 0, penalised, values)
