"""kept[places[b]] = rows[b] for the rows b that have a place: what will be overwritten, and is wanted afterwards.

    rows fp32 [B, V], places int32 [B], each its own or −1, kept fp32 [M, V], M > all places

The grid depends on shapes alone and places are read on the device, so a captured graph serves any choice of rows. A
row without a place costs a program's start.
"""

# mypy: allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches

_BLOCK = 4096
_BLOCKS_EACH = 8


def keep_rows(rows: Tensor, places: Tensor, kept: Tensor) -> None:
    """Raises ValueError for wrong shapes, dtypes or layouts."""
    _check(rows, places, kept)
    num_rows, width = rows.shape
    if not launches(rows):
        ref_keep_rows(rows, places, kept)
    elif num_rows:
        _keep[(triton.cdiv(width, _BLOCK * _BLOCKS_EACH), num_rows)](
            rows, places, kept, width, BLOCK=_BLOCK, BLOCKS_EACH=_BLOCKS_EACH, num_warps=4
        )


def ref_keep_rows(rows: Tensor, places: Tensor, kept: Tensor) -> None:
    has_place = places >= 0
    kept[places[has_place].long()] = rows[has_place]


@triton.jit(do_not_specialize_on_alignment=["places"])
def _keep(rows, places, kept, V, BLOCK: tl.constexpr, BLOCKS_EACH: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    place = tl.load(places + row).to(tl.int64)
    if place >= 0:
        first = tl.program_id(0) * BLOCK * BLOCKS_EACH
        for index in range(BLOCKS_EACH):
            column = first + index * BLOCK + tl.arange(0, BLOCK)
            values = tl.load(rows + row * V + column, mask=column < V)
            tl.store(kept + place * V + column, values, mask=column < V)


def _check(rows: Tensor, places: Tensor, kept: Tensor) -> None:
    for name, tensor in (("rows", rows), ("kept", kept)):
        if tensor.dim() != 2 or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous fp32 [B, V], not {tensor.dtype} {tuple(tensor.shape)}")
    if rows.shape[1] != kept.shape[1]:
        raise ValueError(f"rows of {rows.shape[1]} do not fit into rows of {kept.shape[1]}")
    if places.shape != rows.shape[:1] or places.dtype != torch.int32 or not places.is_contiguous():
        raise ValueError(f"places must be contiguous int32 [{len(rows)}], not {places.dtype} {tuple(places.shape)}")
