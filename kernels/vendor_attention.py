"""Attention of one long run of prompt tokens by cuDNN: its K and V gathered from the paged cache, its prefix and itself
attended separately and merged.

cuDNN, as PyTorch exposes it, knows no block tables and aligns a causal mask at the top left, where a chunk after a
prefix needs the bottom right. So a run of n tokens from position p on becomes

    aligned p ──┬── prefix call: n queries × [0, aligned p), all visible
                └── self call: [aligned p, p + n) × itself, causal        out = Σ outᵢ · exp(lseᵢ) / Σ exp(lseᵢ)

cuDNN prepares a plan for each shape it meets (tens of milliseconds, once). Lengths are rounded to keep shapes few: the
prefix down to PREFIX_STEP, its remainder going to the self call as queries whose result is dropped; queries up to
QUERY_STEP. Keys past the run's own are zeros and, the mask being causal, seen by dropped queries alone.

Source of the merge: Rabe and Staats, "Self-attention does not need O(n²) memory", 2021.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

PREFIX_STEP = 2048
QUERY_STEP = 512

_GATHER_TOKENS = 64
_MERGE_ROWS = 32


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens of one sequence, as the host knows them."""

    first_token: int
    """Index in the step's tokens."""
    num_tokens: int
    start: int
    """Position of the first token in its sequence: the length of the prefix."""


def cudnn_accepts(q: Tensor) -> bool:
    """Whether cuDNN's fused attention takes such queries: on Hopper and later, 16 bits, head_dim up to 128."""
    return q.is_cuda and q.element_size() == 2 and q.shape[2] <= 128 and q.shape[2] % 8 == 0 and _has_cudnn(q.device)


@cache
def _has_cudnn(device: torch.device) -> bool:
    known = hasattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention") and torch.backends.cudnn.is_available()
    return known and torch.cuda.get_device_capability(device) >= (9, 0)


def cudnn_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    run: Run,
    scale: float,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """[run.num_tokens, num_heads, head_dim] of q's dtype, written to `out` if given; operands as in
    `prefill_attention`, of whose tokens only the run's are looked at."""
    n = run.num_tokens
    prefix = run.start // PREFIX_STEP * PREFIX_STEP
    remainder = run.start - prefix
    num_queries = _round_up(remainder + n, QUERY_STEP)
    kv = gather_kv(
        kv_layer, block_tables, rows, run, prefix + num_queries, dtype=q.dtype, k_scale=k_scale, v_scale=v_scale
    )
    queries = _pad(q[run.first_token : run.first_token + n], remainder, num_queries)
    own, own_lse = _cudnn(queries, kv[0, prefix:], kv[1, prefix:], scale, causal=True, with_lse=prefix > 0)
    own = own[remainder : remainder + n]
    if not prefix:
        return own if out is None else out.copy_(own)
    queries = _pad(q[run.first_token : run.first_token + n], 0, _round_up(n, QUERY_STEP))
    other, other_lse = _cudnn(queries, kv[0, :prefix], kv[1, :prefix], scale, causal=False, with_lse=True)
    return merge_attention(own, own_lse[:, remainder:], other[:n], other_lse, out=own if out is None else out)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _pad(q: Tensor, num_before: int, num_queries: int) -> Tensor:
    """[num_queries, num_heads, head_dim]: zeros around q, or q itself where nothing is missing."""
    if len(q) == num_queries:
        return q
    padded = q.new_zeros(num_queries, *q.shape[1:])
    padded[num_before : num_before + len(q)] = q
    return padded


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool, with_lse: bool) -> tuple[Tensor, Tensor]:
    """[N, num_heads, head_dim], and fp32 log Σ exp of scaled scores [num_heads, N] if asked for."""
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, with_lse, 0.0, causal, False, scale=scale
    )
    return out[0].transpose(0, 1), lse.view(q.shape[1:3]) if with_lse else lse


@triton.jit(do_not_specialize=["num_keys", "num_padded"], do_not_specialize_on_alignment=["rows_ptr"])
def _gather_kernel(
    kv_ptr,
    tables_ptr,
    rows_ptr,
    out_ptr,
    table_stride,
    num_keys,
    num_padded,
    k_scale,
    v_scale,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (num_kv_heads, token tiles): K and V [BLOCK_T, BLOCK_D] of a head."""
    head = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)[None, :]
    row = tl.load(rows_ptr).to(tl.int64)
    exists = n < tl.where(row >= 0, num_keys, 0)
    block = tl.load(tables_ptr + row * table_stride + n // BLOCK_SIZE, mask=exists, other=0).to(tl.int64)
    slot = ((block * NUM_KV_HEADS + head) * 2 * BLOCK_SIZE + n % BLOCK_SIZE) * HEAD_DIM
    kv_ptrs = kv_ptr + slot[:, None] + d
    loaded = exists[:, None] & (d < HEAD_DIM)
    k = tl.load(kv_ptrs, mask=loaded, other=0.0).to(tl.float32) * k_scale
    v = tl.load(kv_ptrs + BLOCK_SIZE * HEAD_DIM, mask=loaded, other=0.0).to(tl.float32) * v_scale
    out_ptrs = out_ptr + ((n.to(tl.int64) * NUM_KV_HEADS + head) * HEAD_DIM)[:, None] + d
    stored = (n < num_padded)[:, None] & (d < HEAD_DIM)
    tl.store(out_ptrs, k.to(out_ptr.dtype.element_ty), mask=stored)
    v_ptrs = out_ptrs + num_padded.to(tl.int64) * (NUM_KV_HEADS * HEAD_DIM)
    tl.store(v_ptrs, v.to(out_ptr.dtype.element_ty), mask=stored)


def gather_kv(
    kv_layer: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    run: Run,
    num_padded: int,
    *,
    dtype: torch.dtype,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """[2, num_padded, num_kv_heads, head_dim]: K and V at positions 0 … run.start + run.num_tokens − 1 of the run's
    sequence, zeros after. Token-major, so that strides are the same for every length."""
    num_kv_heads, _, block_size, head_dim = kv_layer.shape[1:]
    out = torch.empty(2, num_padded, num_kv_heads, head_dim, dtype=dtype, device=kv_layer.device)
    _gather_kernel[num_kv_heads, triton.cdiv(num_padded, _GATHER_TOKENS)](
        kv_layer,
        block_tables,
        rows[run.first_token :],
        out,
        block_tables.stride(0),
        run.start + run.num_tokens,
        num_padded,
        float(k_scale),
        float(v_scale),
        NUM_KV_HEADS=num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        BLOCK_T=_GATHER_TOKENS,
        BLOCK_D=triton.next_power_of_2(head_dim),
    )
    return out


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["a_lse_ptr"])
def _merge_kernel(
    a_ptr,
    a_lse_ptr,
    b_ptr,
    b_lse_ptr,
    out_ptr,
    num_rows,
    a_stride,
    b_stride,
    out_stride,
    a_lse_stride,
    b_lse_stride,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)  # token · NUM_HEADS + head
    d = tl.arange(0, BLOCK_D)[None, :]
    exists = r < num_rows
    token, head = (r // NUM_HEADS).to(tl.int64), (r % NUM_HEADS).to(tl.int64)
    a_lse = tl.load(a_lse_ptr + head * a_lse_stride + token, mask=exists, other=0.0)
    b_lse = tl.load(b_lse_ptr + head * b_lse_stride + token, mask=exists, other=0.0)
    b_share = tl.sigmoid(b_lse - a_lse)[:, None]
    element = (head * HEAD_DIM)[:, None] + d  # [BLOCK_R, BLOCK_D], of a token
    mask = exists[:, None] & (d < HEAD_DIM)
    a = tl.load(a_ptr + (token * a_stride)[:, None] + element, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + (token * b_stride)[:, None] + element, mask=mask, other=0.0).to(tl.float32)
    merged = a + (b - a) * b_share
    tl.store(out_ptr + (token * out_stride)[:, None] + element, merged.to(out_ptr.dtype.element_ty), mask=mask)


def merge_attention(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, *, out: Tensor) -> Tensor:
    """Attention over two sets of keys from attention over each: a, b, out [T, num_heads, head_dim], tokens contiguous
    (`out` may be one of them), a_lse, b_lse fp32 [num_heads, ≥ T], natural logarithms."""
    for tensor in (a, b, out):
        if tensor.shape != a.shape or tensor.stride()[1:] != (a.shape[2], 1):
            raise ValueError(f"{tuple(tensor.shape)} with strides {tensor.stride()} does not fit {tuple(a.shape)}")
    num_rows, head_dim = a.shape[0] * a.shape[1], a.shape[2]
    _merge_kernel[(triton.cdiv(num_rows, _MERGE_ROWS),)](
        a,
        a_lse,
        b,
        b_lse,
        out,
        num_rows,
        a.stride(0),
        b.stride(0),
        out.stride(0),
        a_lse.stride(0),
        b_lse.stride(0),
        NUM_HEADS=a.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_R=_MERGE_ROWS,
        BLOCK_D=triton.next_power_of_2(head_dim),
    )
    return out
