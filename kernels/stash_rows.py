"""What stays of a step's tokens for later: of each sequence the last few, in a ring.

    at = (rows[t], positions[t] mod L), of each token t whose row is not −1 (padding)
    ring[at, first_column : first_column + H] = x[t]
    ring_tokens[at]    = token_ids[t], or last_tokens[rows[t]] where that is -1: see begin_step
    ring_positions[at] = positions[t]

Shapes: x [T, H] with contiguous rows, of the dtype of ring [S, L, F], F ≥ first_column + H; token_ids, rows, positions
int32 [T]; last_tokens int32 [S']; ring_tokens, ring_positions int32 [S, L]. No two tokens have one place.
"""

# mypy: allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches

BLOCK = 1024
NUM_WARPS = 4


def stash_rows(
    x: Tensor,
    token_ids: Tensor,
    rows: Tensor,
    positions: Tensor,
    last_tokens: Tensor,
    ring: Tensor,
    ring_tokens: Tensor,
    ring_positions: Tensor,
    first_column: int = 0,
) -> None:
    """Raises ValueError for wrong shapes or dtypes."""
    num_tokens, width = x.shape
    for name, tensor in (("token_ids", token_ids), ("rows", rows), ("positions", positions)):
        if tensor.dtype != torch.int32 or tensor.shape != (num_tokens,):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not int32 ({num_tokens},)")
    if x.dtype != ring.dtype or first_column + width > ring.shape[2]:
        raise ValueError(
            f"{x.dtype} {tuple(x.shape)} does not fit into {ring.dtype} {tuple(ring.shape)} from column {first_column}"
        )
    given = (x, token_ids, rows, positions, last_tokens, ring, ring_tokens, ring_positions)
    if not launches(x):
        ref_stash_rows(*given, first_column)
    elif num_tokens:
        _stash[(num_tokens, triton.cdiv(width, BLOCK))](
            *given, x.stride(0), ring.shape[1], ring.shape[2], first_column, width, BLOCK=BLOCK, num_warps=NUM_WARPS
        )


def ref_stash_rows(
    x: Tensor,
    token_ids: Tensor,
    rows: Tensor,
    positions: Tensor,
    last_tokens: Tensor,
    ring: Tensor,
    ring_tokens: Tensor,
    ring_positions: Tensor,
    first_column: int,
) -> None:
    is_token = rows >= 0
    slots, ids = rows[is_token].long(), token_ids[is_token]
    places = slots, (positions[is_token] % ring.shape[1]).long()
    ring[(*places, slice(first_column, first_column + x.shape[1]))] = x[is_token]
    ring_tokens[places] = torch.where(ids < 0, last_tokens[torch.where(ids < 0, slots, 0)], ids)
    ring_positions[places] = positions[is_token]


@triton.jit(do_not_specialize=["first_column"], do_not_specialize_on_alignment=["token_ids", "rows", "positions"])
def _stash(
    x,
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
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    row = tl.load(rows + token)
    if row >= 0:
        position = tl.load(positions + token)
        place = row.to(tl.int64) * L + position % L
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        values = tl.load(x + token.to(tl.int64) * x_stride + columns, columns < H)
        tl.store(ring + place * F + first_column + columns, values, columns < H)
        if tl.program_id(1) == 0:
            token_id = tl.load(token_ids + token)
            if token_id < 0:
                token_id = tl.load(last_tokens + row)
            tl.store(ring_tokens + place, token_id)
            tl.store(ring_positions + place, position)
