"""logits[rows[e], ids[e]] += values[e] for e < num_edits: logit_bias, and −inf for tokens that must not be drawn.

    logits fp32 [B, V] (contiguous, changed in place), rows and ids int32 [E], values fp32 [E], num_edits int32 [1]

E is a capacity: the grid depends on it alone, and the number of edits is read on the device, so a captured graph
serves any number. −inf is set, not added: neither NaN nor +inf survives it. No (row, id) occurs twice, and rows and ids
are in range: a caller's duty, for the check would have to wait for the device.
"""

# mypy: allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches

_BLOCK = 256


def apply_edits(logits: Tensor, rows: Tensor, ids: Tensor, values: Tensor, num_edits: Tensor) -> Tensor:
    """`logits`, changed. Raises ValueError for wrong shapes, dtypes or layouts."""
    _check(logits, rows, ids, values, num_edits)
    if not launches(logits):
        return logits.copy_(ref_apply_edits(logits, rows, ids, values, num_edits))
    capacity, vocab_size = len(rows), logits.shape[1]
    if capacity > 0:
        _apply[(triton.cdiv(capacity, _BLOCK),)](
            logits, rows, ids, values, num_edits, capacity, vocab_size, BLOCK=_BLOCK, num_warps=4
        )
    return logits


def ref_apply_edits(logits: Tensor, rows: Tensor, ids: Tensor, values: Tensor, num_edits: Tensor) -> Tensor:
    """A copy of `logits` with the edits, in plain torch."""
    n = int(num_edits)
    where, values = (rows[:n].long(), ids[:n].long()), values[:n]
    edited = logits.clone()
    edited[where] = torch.where(values == -torch.inf, values, logits[where] + values)
    return edited


@triton.jit(do_not_specialize=["capacity"], do_not_specialize_on_alignment=["rows", "ids", "values"])
def _apply(logits, rows, ids, values, num_edits, capacity, V, BLOCK: tl.constexpr):
    edit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = edit < tl.minimum(tl.load(num_edits), capacity)
    row = tl.load(rows + edit, mask=inside, other=0).to(tl.int64)
    place = logits + row * V + tl.load(ids + edit, mask=inside, other=0)
    value = tl.load(values + edit, mask=inside, other=0.0)
    edited = tl.where(value == float("-inf"), value, tl.load(place, mask=inside, other=0.0) + value)
    tl.store(place, edited, mask=inside)


def _check(logits: Tensor, rows: Tensor, ids: Tensor, values: Tensor, num_edits: Tensor) -> None:
    if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous fp32 [B, V], not {logits.dtype} {tuple(logits.shape)}")
    for name, tensor, dtype, length in (
        ("rows", rows, torch.int32, len(rows)),
        ("ids", ids, torch.int32, len(rows)),
        ("values", values, torch.float32, len(rows)),
        ("num_edits", num_edits, torch.int32, 1),
    ):
        if tensor.shape != (length,) or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous {dtype} [{length}], not {tensor.dtype} {tuple(tensor.shape)}")
