"""What a step begins with: the ids of its tokens, their embeddings, and where their sequences lie in the pool.

    id[t]  = token_ids[t], or last_tokens[rows[t]] where that is -1: the token that the step before has drawn
    x[t]   = embedding[id[t]], or 0 where rows[t] = -1 (padding)
    block_tables[rows[t], new_indices[t]] = new_blocks[t], where new_indices[t] ≥ 0 and the row is no padding

Shapes: token_ids, rows, new_indices, new_blocks int32 [T]; last_tokens int32 [S]; block_tables int32 [R, max_blocks];
embedding [vocab_size, H], x [T, H] of the same dtype. All contiguous. A row of the table is named by at most one token
that brings it a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches

BLOCK = 1024
NUM_WARPS = 4


def ref_begin_step(
    token_ids: Tensor,
    rows: Tensor,
    new_indices: Tensor,
    new_blocks: Tensor,
    last_tokens: Tensor,
    block_tables: Tensor,
    embedding: Tensor,
) -> Tensor:
    """x; changes `block_tables`."""
    is_token = rows >= 0
    drawn = last_tokens[torch.where(token_ids < 0, rows, 0).clamp(min=0).long()]
    ids = torch.where(token_ids < 0, drawn, token_ids)
    brings = is_token & (new_indices >= 0)
    block_tables[rows[brings].long(), new_indices[brings].long()] = new_blocks[brings]
    return embedding[torch.where(is_token, ids, 0).long()] * is_token[:, None]


@triton.jit(do_not_specialize_on_alignment=["token_ids", "rows", "new_indices", "new_blocks", "last_tokens"])
def _begin_step_kernel(
    token_ids,
    rows,
    new_indices,
    new_blocks,
    last_tokens,
    block_tables,
    embedding,
    x,
    max_blocks,
    H,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    row = tl.load(rows + token)
    token_id = tl.load(token_ids + token)
    if token_id < 0:
        token_id = tl.load(last_tokens + tl.maximum(row, 0))
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    is_used = columns < tl.where(row >= 0, H, 0)
    values = tl.load(embedding + token_id.to(tl.int64) * H + columns, is_used, other=0.0)
    tl.store(x + token.to(tl.int64) * H + columns, values, columns < H)
    new_index = tl.load(new_indices + token)
    if (tl.program_id(1) == 0) & (row >= 0) & (new_index >= 0):
        tl.store(block_tables + row.to(tl.int64) * max_blocks + new_index, tl.load(new_blocks + token))


def begin_step(
    token_ids: Tensor,
    rows: Tensor,
    new_indices: Tensor,
    new_blocks: Tensor,
    last_tokens: Tensor,
    block_tables: Tensor,
    embedding: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """x [T, H], in `out` if given; changes `block_tables`."""
    num_tokens, hidden_size = len(token_ids), embedding.shape[1]
    for name, tensor in (("token_ids", token_ids), ("rows", rows), ("new_indices", new_indices)):
        if tensor.dtype != torch.int32 or tensor.shape != (num_tokens,):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not int32 ({num_tokens},)")
    x = torch.empty(num_tokens, hidden_size, dtype=embedding.dtype, device=embedding.device) if out is None else out
    if not launches(embedding):
        return x.copy_(ref_begin_step(token_ids, rows, new_indices, new_blocks, last_tokens, block_tables, embedding))
    if num_tokens:
        _begin_step_kernel[(num_tokens, triton.cdiv(hidden_size, BLOCK))](
            token_ids,
            rows,
            new_indices,
            new_blocks,
            last_tokens,
            block_tables,
            embedding,
            x,
            block_tables.shape[1],
            hidden_size,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return x
