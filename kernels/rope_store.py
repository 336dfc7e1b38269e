"""Rotates Q and K and stores K and V into the paged pool, in one launch.

    qkv [T, (num_heads + 2 num_kv_heads) · head_dim]   Q heads, K heads, V heads; bf16, fp16 or fp32; rows contiguous
    kv_layer [num_blocks, num_kv_heads, 2, block_size, head_dim]   contiguous; 2: K, V; fp32, bf16, fp16, fp8
    block_tables int32 [num_table_rows, max_blocks]    rows, positions int32 [T]; contiguous rows
    cos_sin fp32 [max_positions, 2, head_dim / 2]      contiguous
    -> q [T, num_heads, head_dim]                      qkv's dtype

Halves (a, b) of a head become (a cos − b sin, b cos + a sin), after an RMS norm over the head where a weight for it is
given (Qwen3). Token t goes to block block_tables[rows[t], positions[t] // block_size], at positions[t] % block_size.
rows[t] = −1 is padding: nothing of it is read or stored, and its q is zero. Arithmetic is fp32, rounded once. A pool in
fp8 holds value / scale, multiplied by the scale's reciprocal, and saturates.
Positions below max_positions, and blocks within the pool, are the caller's to see to.

With `pdl` the launch overlaps the end of the one before it (programmatic dependent launch): rows, positions, tables,
cos_sin and weights are read ahead, and must have been written earlier than by that one.
Sources of the method: Su et al., "RoFormer", 2021; Kwon et al., "PagedAttention", SOSP 2023.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches


class RopeConfig(NamedTuple):
    heads: int
    """Of one token that a program does, a power of two."""
    num_warps: int


FEW_TOKENS = 128
"""Up to here latency counts, and a token's heads are spread over many programs."""
HEADS_OF_FEW = 8
HEADS_OF_MANY = 16


def rope_config(num_tokens: int, head_dim: int) -> RopeConfig:
    """Warps for eight numbers of a half a thread: 16 bytes of bf16."""
    heads = HEADS_OF_FEW if num_tokens <= FEW_TOKENS else HEADS_OF_MANY
    return RopeConfig(heads, num_warps=max(heads * triton.next_power_of_2(head_dim // 2) // 256, 1))


def ref_rope_store(
    qkv: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """As `rope_store`; not capturable."""
    num_kv_heads, block_size, head_dim = kv_layer.shape[1], kv_layer.shape[3], kv_layer.shape[4]
    q = torch.zeros(len(qkv), num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    real = (rows >= 0).nonzero().flatten()
    heads = qkv[real].float().view(len(real), num_heads + 2 * num_kv_heads, head_dim)
    query, key, value = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    cos, sin = cos_sin[positions[real].long()][:, :, None].unbind(1)  # [T, 1, head_dim / 2]
    q[real] = _rotated(_normed(query, q_norm, eps), cos, sin).to(q.dtype)
    slots = positions[real].long()
    blocks = block_tables[rows[real].long(), slots // block_size].long()
    key = _rotated(_normed(key, k_norm, eps), cos, sin)
    kv_layer[blocks, :, 0, slots % block_size] = _saturated(key * (1 / k_scale), kv_layer.dtype)
    kv_layer[blocks, :, 1, slots % block_size] = _saturated(value * (1 / v_scale), kv_layer.dtype)
    return q


def _normed(heads: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return heads
    return heads * torch.rsqrt(heads.square().mean(dim=-1, keepdim=True) + eps) * weight.float()


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = heads.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    limit = _fp8_max(dtype)
    return (values.clamp(-limit, limit) if limit else values).to(dtype)


def _fp8_max(dtype: torch.dtype) -> float:
    """0 if it is not fp8."""
    return torch.finfo(dtype).max if dtype.itemsize == 1 else 0.0


@triton.jit
def _norm_factors(a, b, weight, column, mask, eps, HEAD_DIM: tl.constexpr):
    """What halves a and b of heads, each [HEADS, HALF], are multiplied by: [HEADS, HALF] each."""
    inverse = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / HEAD_DIM + eps)[:, None]
    of_a = tl.load(weight + column, mask=mask, other=0).to(tl.float32)
    of_b = tl.load(weight + HEAD_DIM // 2 + column, mask=mask, other=0).to(tl.float32)
    return inverse * of_a[None, :], inverse * of_b[None, :]


@triton.jit
def _stored(value, factor, FP8_MAX: tl.constexpr, dtype: tl.constexpr):
    """`value` as the pool holds it."""
    if FP8_MAX > 0:
        value = tl.clamp(value * factor, -FP8_MAX, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    return value.to(dtype)


@triton.jit(do_not_specialize_on_alignment=["rows", "positions"])
def _rope_store_kernel(
    qkv,
    kv_layer,
    block_tables,
    rows,
    positions,
    cos_sin,
    q_norm,
    k_norm,
    q,
    qkv_stride,
    q_stride,
    table_stride,
    eps,
    k_factor,
    v_factor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8_MAX: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PDL: tl.constexpr,
):
    NUM_GROUPS: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS + HEADS - 1) // HEADS
    token = (tl.program_id(0) // NUM_GROUPS).to(tl.int64)
    head = tl.program_id(0) % NUM_GROUPS * HEADS + tl.arange(0, HEADS)  # [HEADS]
    column = tl.arange(0, HALF)  # [HALF]
    in_half = column < HEAD_DIM // 2
    is_query = head < NUM_HEADS
    is_key = (head >= NUM_HEADS) & (head < NUM_HEADS + NUM_KV_HEADS)
    is_kv = (head >= NUM_HEADS) & (head < NUM_HEADS + 2 * NUM_KV_HEADS)

    row = tl.load(rows + token).to(tl.int64)
    position = tl.load(positions + token)
    is_read = column < tl.where(row >= 0, HEAD_DIM // 2, 0)  # [HALF]; nothing of padding
    angle = cos_sin + position.to(tl.int64) * HEAD_DIM + column
    cos = tl.load(angle, mask=is_read, other=0)[None, :]  # [1, HALF]
    sin = tl.load(angle + HEAD_DIM // 2, mask=is_read, other=0)[None, :]
    block = tl.load(block_tables + row * table_stride + position // BLOCK_SIZE, mask=row >= 0, other=0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()  # attention looks up its blocks and prefetches KV before it waits
        tl.extra.cuda.gdc_wait()

    source = qkv + token * qkv_stride + head[:, None] * HEAD_DIM + column[None, :]  # [HEADS, HALF]
    mask = (is_query | is_kv)[:, None] & is_read[None, :]
    a = tl.load(source, mask=mask, other=0).to(tl.float32)
    b = tl.load(source + HEAD_DIM // 2, mask=mask, other=0).to(tl.float32)
    a_factor = tl.full((HEADS, HALF), 1, tl.float32)
    b_factor = tl.full((HEADS, HALF), 1, tl.float32)
    if q_norm is not None:
        of_a, of_b = _norm_factors(a, b, q_norm, column, in_half, eps, HEAD_DIM)
        a_factor = tl.where(is_query[:, None], of_a, a_factor)
        b_factor = tl.where(is_query[:, None], of_b, b_factor)
    if k_norm is not None:
        of_a, of_b = _norm_factors(a, b, k_norm, column, in_half, eps, HEAD_DIM)
        a_factor = tl.where(is_key[:, None], of_a, a_factor)
        b_factor = tl.where(is_key[:, None], of_b, b_factor)
    a = a * a_factor
    b = b * b_factor
    is_turned = (is_query | is_key)[:, None]
    turned_a = tl.where(is_turned, a * cos - b * sin, a)
    turned_b = tl.where(is_turned, b * cos + a * sin, b)

    place = q + token * q_stride + head[:, None] * HEAD_DIM + column[None, :]
    mask = is_query[:, None] & in_half[None, :]
    tl.store(place, tl.where(is_read[None, :], turned_a, 0).to(q.dtype.element_ty), mask=mask)
    tl.store(place + HEAD_DIM // 2, tl.where(is_read[None, :], turned_b, 0).to(q.dtype.element_ty), mask=mask)

    kv_head = tl.where(is_key, head - NUM_HEADS, head - NUM_HEADS - NUM_KV_HEADS)
    part = 2 * kv_head + tl.where(is_key, 0, 1)  # [HEADS], of the block's 2 NUM_KV_HEADS tiles [BLOCK_SIZE, HEAD_DIM]
    place = kv_layer + (block * (2 * NUM_KV_HEADS * BLOCK_SIZE) + position % BLOCK_SIZE) * HEAD_DIM
    place += part[:, None] * (BLOCK_SIZE * HEAD_DIM) + column[None, :]
    mask = is_kv[:, None] & is_read[None, :]
    factor = tl.where(is_key, k_factor, v_factor)[:, None]
    tl.store(place, _stored(turned_a, factor, FP8_MAX, kv_layer.dtype.element_ty), mask=mask)
    tl.store(place + HEAD_DIM // 2, _stored(turned_b, factor, FP8_MAX, kv_layer.dtype.element_ty), mask=mask)


def rope_store(
    qkv: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    *,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    q_out: Tensor | None = None,
    pdl: bool = False,
    config: RopeConfig | None = None,
) -> Tensor:
    """Rotated Q [T, num_heads, head_dim], in `q_out` if given, whose tokens may lie at any stride. `q_norm`, `k_norm`:
    [head_dim]. Raises ValueError on shapes, strides or dtypes it does not take."""
    _check(qkv, kv_layer, num_heads)
    _check_metadata(qkv, kv_layer, block_tables, rows, positions, cos_sin)
    _check_norms(kv_layer, q_norm, k_norm)
    if kv_layer.dtype.itemsize > 1 and (k_scale, v_scale) != (1.0, 1.0):
        raise ValueError(f"a pool of {kv_layer.dtype} has no scales")
    num_tokens, head_dim = len(qkv), kv_layer.shape[4]
    shape = (num_tokens, num_heads, head_dim)
    q = torch.empty(shape, dtype=qkv.dtype, device=qkv.device) if q_out is None else q_out
    if q.shape != shape or q.dtype != qkv.dtype or q.stride()[1:] != (head_dim, 1):
        raise ValueError(f"q_out must be {qkv.dtype} {shape} with contiguous tokens")
    if not launches(qkv):
        arguments = (qkv, kv_layer, block_tables, rows, positions, cos_sin, num_heads, q_norm, k_norm, eps)
        return q.copy_(ref_rope_store(*arguments, k_scale=k_scale, v_scale=v_scale))
    if num_tokens == 0:
        return q
    heads, num_warps = config or rope_config(num_tokens, head_dim)
    num_groups = triton.cdiv(num_heads + 2 * kv_layer.shape[1], heads)
    pdl = pdl and qkv.is_cuda
    _rope_store_kernel[(num_tokens * num_groups,)](
        qkv,
        kv_layer,
        block_tables,
        rows,
        positions,
        cos_sin,
        q_norm,
        k_norm,
        q,
        qkv.stride(0),
        q.stride(0),
        block_tables.stride(0),
        eps,
        1 / k_scale,
        1 / v_scale,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=kv_layer.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_SIZE=kv_layer.shape[3],
        FP8_MAX=_fp8_max(kv_layer.dtype),
        HEADS=heads,
        HALF=triton.next_power_of_2(head_dim // 2),
        PDL=pdl,
        num_warps=num_warps,
        launch_pdl=pdl,
    )
    return q


def _check(qkv: Tensor, kv_layer: Tensor, num_heads: int) -> None:
    if kv_layer.dim() != 5 or kv_layer.shape[2] != 2 or kv_layer.shape[4] % 16 or not kv_layer.is_contiguous():
        raise ValueError(
            "kv_layer must be contiguous [num_blocks, num_kv_heads, 2, block_size, head_dim], head_dim a multiple of "
            f"16, not {tuple(kv_layer.shape)}"
        )
    width = (num_heads + 2 * kv_layer.shape[1]) * kv_layer.shape[4]
    if qkv.dim() != 2 or qkv.shape[1] != width or qkv.stride(1) != 1:
        raise ValueError(f"qkv must be [T, {width}] with contiguous rows, not {tuple(qkv.shape)}")


def _check_metadata(
    qkv: Tensor, kv_layer: Tensor, block_tables: Tensor, rows: Tensor, positions: Tensor, cos_sin: Tensor
) -> None:
    for name, tensor in (("rows", rows), ("positions", positions)):
        if tensor.shape != qkv.shape[:1] or tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32 [{len(qkv)}], not {tensor.dtype} {tuple(tensor.shape)}")
    if block_tables.dim() != 2 or block_tables.dtype != torch.int32 or block_tables.stride(1) != 1:
        raise ValueError(f"block_tables must be int32 [num_table_rows, max_blocks], not {tuple(block_tables.shape)}")
    half = kv_layer.shape[4] // 2
    if cos_sin.shape[1:] != (2, half) or cos_sin.dtype != torch.float32 or not cos_sin.is_contiguous():
        raise ValueError(f"cos_sin must be contiguous fp32 [max_positions, 2, {half}], not {tuple(cos_sin.shape)}")


def _check_norms(kv_layer: Tensor, *norms: Tensor | None) -> None:
    for norm in norms:
        if norm is not None and (norm.shape != kv_layer.shape[4:] or not norm.is_contiguous()):
            raise ValueError(f"a head's norm must be contiguous [{kv_layer.shape[4]}], not {tuple(norm.shape)}")
