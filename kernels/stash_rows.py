"""What stays of a step's tokens for later: of each sequence the last few, in a ring.

    at = (rows[t], positions[t] mod L), of each token t whose row is not −1 (padding)
    ring[at, first_column + s H : first_column + (s + 1) H] = streams[s][t]
    ring_tokens[at]    = token_ids[t], or last_tokens[rows[t]] where that is -1: see begin_step
    ring_positions[at] = positions[t]

Shapes: 1 to MAX_STREAMS streams [T, H], with contiguous rows of one stride, of the dtype of ring [S, L, F], F ≥
first_column + len(streams) H; token_ids, rows, positions int32 [T]; last_tokens int32 [S']; ring_tokens, ring_positions
int32 [S, L]. No two tokens have one place.
"""

# mypy: allow-incomplete-defs

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches

MAX_STREAMS = 3
"""Of one launch: as many as an EAGLE-3 head usually reads."""
BLOCK = 1024
NUM_WARPS = 4


class Stash(NamedTuple):
    streams: Sequence[Tensor]
    token_ids: Tensor
    rows: Tensor
    positions: Tensor
    last_tokens: Tensor
    ring: Tensor
    ring_tokens: Tensor
    ring_positions: Tensor
    first_column: int = 0


def stash_rows(stash: Stash) -> None:
    """Raises ValueError for wrong shapes, strides or dtypes, and for too many streams or none."""
    check_stash(stash)
    num_tokens, width = stash.streams[0].shape
    if not launches(stash.ring):
        ref_stash_rows(stash)
    elif num_tokens:
        _stash[(num_tokens, num_stash_programs(stash))](
            *stash_arguments(stash), STREAM_PROGRAMS=triton.cdiv(width, BLOCK), BLOCK=BLOCK, num_warps=NUM_WARPS
        )


def num_stash_programs(stash: Stash) -> int:
    """Of each token."""
    return len(stash.streams) * triton.cdiv(stash.streams[0].shape[1], BLOCK)


def stash_arguments(stash: Stash) -> tuple[Tensor | int, ...]:
    """Of `stash_row`, after the first two."""
    x, ring = stash.streams[0], stash.ring
    streams = *stash.streams, *[x] * (MAX_STREAMS - len(stash.streams))
    return *streams, *stash[1:-1], x.stride(0), ring.shape[1], ring.shape[2], stash.first_column, x.shape[1]


def check_stash(stash: Stash) -> None:
    """See `stash_rows`."""
    streams, token_ids, rows, positions, _, ring, _, _, first_column = stash
    if not 0 < len(streams) <= MAX_STREAMS:
        raise ValueError(f"{len(streams)} streams, not 1 to {MAX_STREAMS}")
    x = streams[0]
    num_tokens, width = x.shape
    for stream in streams:
        if (stream.dtype, stream.shape, stream.stride()) != (x.dtype, x.shape, (x.stride(0), 1)):
            raise ValueError(
                f"streams are not alike, or their rows not contiguous: {_described(x)}, {_described(stream)}"
            )
    for name, tensor in (("token_ids", token_ids), ("rows", rows), ("positions", positions)):
        if tensor.dtype != torch.int32 or tensor.shape != (num_tokens,):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not int32 ({num_tokens},)")
    if x.dtype != ring.dtype or first_column + len(streams) * width > ring.shape[2]:
        raise ValueError(
            f"{len(streams)} of {_described(x)} do not fit into {_described(ring)} from column {first_column}"
        )


def ref_stash_rows(stash: Stash) -> None:
    streams, token_ids, rows, positions, last_tokens, ring, ring_tokens, ring_positions, first_column = stash
    is_token = rows >= 0
    slots, ids = rows[is_token].long(), token_ids[is_token]
    places = slots, (positions[is_token] % ring.shape[1]).long()
    x = torch.cat([stream[is_token] for stream in streams], 1)
    ring[(*places, slice(first_column, first_column + x.shape[1]))] = x
    ring_tokens[places] = torch.where(ids < 0, last_tokens[torch.where(ids < 0, slots, 0)], ids)
    ring_positions[places] = positions[is_token]


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} of strides {tensor.stride()}"


@triton.jit(do_not_specialize_on_alignment=["token_ids", "rows", "positions"])
def _stash(
    x0,
    x1,
    x2,
    token_ids,
    rows,
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
    STREAM_PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    stash_row(
        tl.program_id(0),
        tl.program_id(1),
        x0,
        x1,
        x2,
        token_ids,
        rows,
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
        BLOCK,
    )


@triton.jit
def stash_row(
    token,
    program,
    x0,
    x1,
    x2,
    token_ids,
    rows,
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
    STREAM_PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The part of one program of a token: `STREAM_PROGRAMS` for each stream, one after the other. What it reads, it
    asks for at once."""
    row, position, token_id = tl.load(rows + token), tl.load(positions + token), tl.load(token_ids + token)
    stream = program // STREAM_PROGRAMS
    x = x0
    if stream == 1:
        x = x1
    if stream == 2:
        x = x2
    columns = program % STREAM_PROGRAMS * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    values = tl.load(x + token.to(tl.int64) * x_stride + columns, columns < H)
    if row >= 0:
        place = row.to(tl.int64) * L + position % L
        tl.store(ring + place * F + first_column + stream * H + columns, values, columns < H)
        if program == 0:
            if token_id < 0:
                token_id = tl.load(last_tokens + row)
            tl.store(ring_tokens + place, token_id)
            tl.store(ring_positions + place, position)
