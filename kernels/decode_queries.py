"""The query tile of paged_decode_attention.py: TOKENS tokens of a sequence × the GROUP heads of a KV head, by tokens.

RUN tokens of each sequence follow one another, and a program takes TOKENS of them from `first_token` on, or what is
left. Of a run may exist fewer than RUN: those up to its context. With RUN = 1 a query is a head.
"""

import triton
import triton.language as tl


@triton.jit
def num_queries(first_token, GROUP: tl.constexpr, TOKENS: tl.constexpr, RUN: tl.constexpr):
    """Of a program."""
    return GROUP * TOKENS if RUN % TOKENS == 0 else GROUP * tl.minimum(TOKENS, RUN - first_token)


@triton.jit
def query_offsets(query, first_token, token_stride, head_stride, GROUP: tl.constexpr, RUN: tl.constexpr):
    """Where queries lie, from the first head of the run's first token."""
    if RUN == 1:
        offsets = query * head_stride
    else:
        token = (first_token + query // GROUP).to(tl.int64)
        offsets = token * token_stride + query % GROUP * head_stride
    return offsets


@triton.jit
def load_queries(
    q_row,  # pointer to the first head of the run's first token
    first_token,
    token_stride,
    head_stride,
    exists,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    """[ROWS, D]: the queries, zeros below them."""
    query, dim = tl.arange(0, ROWS)[:, None], tl.arange(0, D)[None, :]
    mask = (query < tl.where(exists, num_queries(first_token, GROUP, TOKENS, RUN), 0)) & (dim < HEAD_DIM)
    offsets = query_offsets(query, first_token, token_stride, head_stride, GROUP, RUN)
    return tl.load(q_row + offsets + dim, mask=mask, other=0.0)


@triton.jit
def query_contexts(first_token, first_context, context, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS]: how many keys each query's token has behind it, itself included; 0 of tokens that do not exist."""
    own = first_context + first_token + tl.arange(0, ROWS) // GROUP
    return tl.where(own <= context, own, 0)


@triton.jit
def seen_by_queries(key, contexts, WINDOW: tl.constexpr, FIRST: tl.constexpr):
    """[ROWS, TILE]: which keys of a tile each query sees."""
    seen = key[None, :] < contexts[:, None]
    if FIRST:
        seen &= key[None, :] >= FIRST
    if WINDOW:
        seen &= key[None, :] >= contexts[:, None] - WINDOW
    return seen
