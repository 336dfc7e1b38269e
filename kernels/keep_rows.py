"""kept[places[b]] = rows[b] for the rows b that have a place: what will be overwritten, and is wanted afterwards.

    rows fp32 [B, V], places int32 [B], each its own or −1, kept fp32 [M, V], M > all places

The grid depends on shapes alone and places are read on the device, so a captured graph serves any choice of rows. A
row without a place costs a program's start. What `stash_rows` keeps of the same tokens may go along: in a short step
every kernel counts.
"""

# mypy: allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches
from .stash_rows import BLOCK as STASH_BLOCK
from .stash_rows import Stash, check_stash, num_stash_programs, ref_stash_rows, stash_arguments, stash_row

_BLOCK = 4096
_BLOCKS_EACH = 8


def keep_rows(rows: Tensor, places: Tensor, kept: Tensor, stash: Stash | None = None) -> None:
    """`stash`: of as many tokens as there are rows. Raises ValueError for wrong shapes, dtypes or layouts."""
    _check(rows, places, kept)
    num_rows, width = rows.shape
    if stash is not None:
        check_stash(stash)
        if len(stash.rows) != num_rows:
            raise ValueError(f"{len(stash.rows)} tokens are to be left of {num_rows} rows")
    if not launches(rows):
        ref_keep_rows(rows, places, kept, stash)
        return
    if not num_rows:
        return
    num_programs = triton.cdiv(width, _BLOCK * _BLOCKS_EACH)
    given, sizes = (rows, places, kept, width), {"BLOCK": _BLOCK, "BLOCKS_EACH": _BLOCKS_EACH}
    if stash is None:
        _keep[(num_programs, num_rows)](*given, **sizes, num_warps=4)
    else:
        _keep_and_stash[(num_programs + num_stash_programs(stash), num_rows)](
            *given,
            *stash_arguments(stash),
            **sizes,
            KEEP_PROGRAMS=num_programs,
            STREAM_PROGRAMS=triton.cdiv(stash.streams[0].shape[1], STASH_BLOCK),
            STASH_BLOCK=STASH_BLOCK,
            num_warps=4,
        )


def ref_keep_rows(rows: Tensor, places: Tensor, kept: Tensor, stash: Stash | None) -> None:
    has_place = places >= 0
    kept[places[has_place].long()] = rows[has_place]
    if stash is not None:
        ref_stash_rows(stash)


@triton.jit(do_not_specialize_on_alignment=["places"])
def _keep(rows, places, kept, V, BLOCK: tl.constexpr, BLOCKS_EACH: tl.constexpr):
    _keep_row(tl.program_id(1), tl.program_id(0), rows, places, kept, V, BLOCK, BLOCKS_EACH)


@triton.jit(do_not_specialize_on_alignment=["places", "token_ids", "slots", "positions"])
def _keep_and_stash(
    rows,
    places,
    kept,
    V,
    x0,
    x1,
    x2,
    token_ids,
    slots,
    positions,
    last_tokens,
    ring,
    ring_tokens,
    ring_positions,
    x_stride,
    L,
    F,
    first_column,
    H,
    BLOCK: tl.constexpr,
    BLOCKS_EACH: tl.constexpr,
    KEEP_PROGRAMS: tl.constexpr,
    STREAM_PROGRAMS: tl.constexpr,
    STASH_BLOCK: tl.constexpr,
):
    row, program = tl.program_id(1), tl.program_id(0)
    if program < KEEP_PROGRAMS:
        _keep_row(row, program, rows, places, kept, V, BLOCK, BLOCKS_EACH)
    else:
        stash_row(
            row,
            program - KEEP_PROGRAMS,
            x0,
            x1,
            x2,
            token_ids,
            slots,
            positions,
            last_tokens,
            ring,
            ring_tokens,
            ring_positions,
            x_stride,
            L,
            F,
            first_column,
            H,
            STREAM_PROGRAMS,
            STASH_BLOCK,
        )


@triton.jit
def _keep_row(row, program, rows, places, kept, V, BLOCK: tl.constexpr, BLOCKS_EACH: tl.constexpr):
    place = tl.load(places + row).to(tl.int64)
    if place >= 0:
        first = program * BLOCK * BLOCKS_EACH
        for index in range(BLOCKS_EACH):
            column = first + index * BLOCK + tl.arange(0, BLOCK)
            values = tl.load(rows + row.to(tl.int64) * V + column, mask=column < V)
            tl.store(kept + place * V + column, values, mask=column < V)


def _check(rows: Tensor, places: Tensor, kept: Tensor) -> None:
    for name, tensor in (("rows", rows), ("kept", kept)):
        if tensor.dim() != 2 or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous fp32 [B, V], not {tensor.dtype} {tuple(tensor.shape)}")
    if rows.shape[1] != kept.shape[1]:
        raise ValueError(f"rows of {rows.shape[1]} do not fit into rows of {kept.shape[1]}")
    if places.shape != rows.shape[:1] or places.dtype != torch.int32 or not places.is_contiguous():
        raise ValueError(f"places must be contiguous int32 [{len(rows)}], not {places.dtype} {tuple(places.shape)}")
