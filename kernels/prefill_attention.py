"""Causal attention of prompt chunks over the paged KV cache: each token over its sequence's prefix and its own chunk.

    out[t, h] = Σ_j softmax_j(scale · q[t, h] · k[j, h // G]) · v[j, h // G],  G = num_heads / num_kv_heads

over the positions j that token t sees: 0 … pos(t), or max(0, pos(t) − window + 1) … pos(t).

q, out        [T, num_heads, head_dim]   fp32, bf16 or fp16; the last two dimensions contiguous
kv_layer      [num_blocks, num_kv_heads, 2, block_size, head_dim]   contiguous; fp32, bf16, fp16, fp8; [:, :, 0] is K
block_tables  int32 [num_table_rows, max_blocks]
rows          int32 [T]       table row of a token, −1 for padding
positions     int32 [T]       position of a token in its sequence
row_starts    int32 [R + 1]   run r is tokens row_starts[r] … row_starts[r + 1] − 1: consecutive positions of one row

K and V of the tokens themselves are in the cache already; fp8 holds value / scale. Padding, and tokens after the last
run, give zeros. Slots that hold no visible token are not read, whatever lies in them; nor are table entries past a
row's own blocks. Checked: shapes, dtypes, strides, block_size a power of two. Not looked at, since that would wait for
the device: that row_starts rises from 0 and that runs are what they should be.

Method: one pass with a running maximum and sum (Dao, "FlashAttention-2", 2023), in base 2. The G query heads of a KV
head share the rows of a tile, so that a short run fills it and a tile of K and V is loaded once for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches
from .vendor_attention import Run, cudnn_accepts, cudnn_attention

KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
VENDOR_MIN_TOKENS = 4096
"""Runs at least so long go to cuDNN where it takes them. It is faster from 1024 tokens on, but each new shape costs
75 ms once, and each call as much of the host as three launches of ours."""

SHORT_CONTEXT = 2048
"""Tokens up to which tiles stay small."""
_MIN_WIDE_ROWS = 128 * 132
"""Below so many rows (tokens × heads) tiles of 128 leave multiprocessors of an H100 idle."""
_LOG2_E = 1.4426950408889634
_REF_TOKENS = 256
"""Query tokens at a time in the reference: bounds its scores to [num_heads, 256, context]."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""By element size: PyTorch indexes no fp8."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The operands of `prefill_attention`, by the names of its parameters."""

    q: Tensor
    kv_layer: Tensor
    block_tables: Tensor
    rows: Tensor
    positions: Tensor
    row_starts: Tensor
    scale: float
    window: int | None
    k_scale: float
    v_scale: float

    @property
    def group(self) -> int:
        """Query heads to a KV head."""
        return self.q.shape[1] // self.kv_layer.shape[1]


def ref_prefill_attention(batch: Batch) -> Tensor:
    """fp32 [T, num_heads, head_dim], on any device; reads run lengths to the host."""
    out = torch.zeros(batch.q.shape, device=batch.q.device)
    starts = batch.row_starts.tolist()
    for first, end in pairwise(starts):
        if end > first and (row := int(batch.rows[first])) >= 0:
            num_keys = int(batch.positions[end - 1]) + 1
            first_key = max(0, num_keys - (end - first) - batch.window + 1) if batch.window else 0
            keys, values = _ref_context(batch, row, range(first_key, num_keys))
            for part in range(first, end, _REF_TOKENS):
                tokens = slice(part, min(part + _REF_TOKENS, end))
                out[tokens] = _ref_attend(batch, tokens, keys, values, first_key)
    return out


def _ref_context(batch: Batch, row: int, key_range: range) -> tuple[Tensor, Tensor]:
    """fp32 K and V [num_kv_heads, len(key_range), head_dim] at some positions of a table row's sequence."""
    block_size = batch.kv_layer.shape[3]
    key_pos = torch.arange(key_range.start, key_range.stop, device=batch.q.device)
    blocks = batch.block_tables[row, key_pos // block_size].long()
    kv = batch.kv_layer.view(_BITS[batch.kv_layer.element_size()])[blocks, :, :, key_pos % block_size]
    keys, values = kv.view(batch.kv_layer.dtype).float().permute(2, 1, 0, 3)
    return keys * batch.k_scale, values * batch.v_scale


def _ref_attend(batch: Batch, tokens: slice, keys: Tensor, values: Tensor, first_key: int) -> Tensor:
    """fp32 [num_tokens, num_heads, head_dim] of some tokens of one run, whose keys begin at position `first_key`."""
    pos = batch.positions[tokens].long()[:, None]
    key_pos = torch.arange(first_key, first_key + keys.shape[1], device=keys.device)
    visible = key_pos <= pos
    if batch.window is not None:
        visible &= key_pos > pos - batch.window
    queries = batch.q[tokens].float().transpose(0, 1).unflatten(0, (-1, batch.group))  # [Hkv, G, tokens, D]
    scores = (queries @ keys[:, None].mT * batch.scale).masked_fill_(~visible, -torch.inf)
    return (scores.softmax(-1) @ values[:, None]).flatten(0, 1).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """Of one program: `block_m` rows (query tokens × G heads) against `block_n` keys at a time."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def choose_tile(batch: Batch, max_row_tokens: int, max_context: int) -> Tile:
    """Three stages, so that the next tile but one is under way while this one is computed: two would wait for L2 every
    time. 128 rows halve what 64 read of L2, which pays where contexts are long; of 64 rows and 32 keys three programs
    share a multiprocessor, which hides more of each other's latency."""
    num_heads, head_dim = batch.q.shape[1:]
    if batch.q.dtype == torch.float32:
        return Tile(16, 16, 4, 1)  # computed without the matrix units, and short of registers
    if max_row_tokens * batch.group <= 16:
        return Tile(16, 32, 4, 3)
    if head_dim > 128 or batch.kv_layer.element_size() == 4:
        return Tile(128, 32, 8, 3)
    if max_context <= SHORT_CONTEXT:
        return Tile(64, 32, 4, 3)
    if max_row_tokens * batch.group <= 64 or len(batch.q) * num_heads < _MIN_WIDE_ROWS:
        return Tile(64, 64, 4, 3)
    return Tile(128, 64 if batch.window is not None or head_dim <= 64 else 128, 8, 3)


# Lengths differ from step to step and slices of a step's metadata begin anywhere: specialised, each would compile anew.
_UNSPECIALISED = [
    "tables_ptr",
    "rows_ptr",
    "positions_ptr",
    "starts_ptr",
    "num_runs",
    "first_token",
    "end_token",
    "table_stride",
]


@triton.jit(do_not_specialize=_UNSPECIALISED, do_not_specialize_on_alignment=_UNSPECIALISED)
def _attention_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    tables_ptr,
    rows_ptr,
    positions_ptr,
    starts_ptr,
    num_runs,
    first_token,
    end_token,
    q_stride,
    out_stride,
    table_stride,
    qk_scale,  # scale · k_scale · log2 e
    v_scale,
    window,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Grid (num_kv_heads, row blocks). The last blocks of a run see most keys, so they start first."""
    kv_head = tl.program_id(0)
    row_block = tl.num_programs(1) - 1 - tl.program_id(1)
    run, run_block = _find_run(starts_ptr, num_runs, first_token, row_block, GROUP, BLOCK_M)
    run_start = tl.load(starts_ptr + run)
    run_end = tl.load(starts_ptr + run + 1, mask=run < num_runs, other=end_token)
    first_row = (row_block - run_block) * BLOCK_M  # of the run's (run_end − run_start) · GROUP rows
    num_rows = (run_end - run_start) * GROUP
    if first_row >= num_rows:
        return

    m = first_row + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = (run_start + m // GROUP).to(tl.int64)
    column = (kv_head * GROUP + m % GROUP) * HEAD_DIM
    stored = (m < num_rows)[:, None] & (d < HEAD_DIM)[None, :]  # [BLOCK_M, BLOCK_D]
    out_ptrs = out_ptr + (token * out_stride + column)[:, None] + d[None, :]
    table_row = tl.load(rows_ptr + run_start, mask=run < num_runs, other=-1)
    if table_row < 0:
        tl.store(out_ptrs, tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty), mask=stored)
        return

    q = tl.load(q_ptr + (token * q_stride + column)[:, None] + d[None, :], mask=stored, other=0.0)
    run_position = tl.load(positions_ptr + run_start)
    pos = run_position + m // GROUP  # [BLOCK_M]
    first_pos = run_position + first_row // GROUP
    last_pos = run_position + (tl.minimum(first_row + BLOCK_M, num_rows) - 1) // GROUP
    num_keys = last_pos + 1

    # Whole tiles of keys that every row sees need no mask: [full_start, full_end). Masked ones lie on both sides.
    first_key = 0
    full_start = 0
    full_end = (first_pos + 1) // BLOCK_N * BLOCK_N
    if WINDOWED:
        first_key = tl.maximum(first_pos - window + 1, 0)
        full_start = tl.cdiv(tl.maximum(last_pos - window + 1, 0), BLOCK_N) * BLOCK_N
        full_end = tl.maximum(full_start, full_end)

    kv_ptr += kv_head * (2 * BLOCK_SIZE * HEAD_DIM)
    tables_ptr += table_row.to(tl.int64) * table_stride
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # fmt: off
    if WINDOWED:
        acc, total, maximum = _attend_keys(
            acc, total, maximum, q, kv_ptr, tables_ptr,
            first_key // BLOCK_N * BLOCK_N, tl.minimum(full_start, num_keys),
            pos, first_key, num_keys, qk_scale, window, True, WINDOWED, PRECISION,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, NUM_STAGES,
        )
    acc, total, maximum = _attend_keys(
        acc, total, maximum, q, kv_ptr, tables_ptr, full_start, full_end,
        pos, first_key, num_keys, qk_scale, window, False, WINDOWED, PRECISION,
        NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, NUM_STAGES,
    )
    acc, total, maximum = _attend_keys(
        acc, total, maximum, q, kv_ptr, tables_ptr, full_end, num_keys,
        pos, first_key, num_keys, qk_scale, window, True, WINDOWED, PRECISION,
        NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, NUM_STAGES,
    )
    # fmt: on
    share = v_scale / tl.where(total > 0, total, 1.0)  # rows past the run's last may have seen nothing
    tl.store(out_ptrs, (acc * share[:, None]).to(out_ptr.dtype.element_ty), mask=stored)


@triton.jit
def _find_run(starts_ptr, num_runs, first_token, row_block, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """(run, its first row block) of a row block, by bisection. Run r is given the blocks from
    ⌊tokens before it · GROUP / BLOCK_M⌋ + r on: enough of them, known without a sum over runs."""
    run = 0
    run_block = 0
    beyond = num_runs + 1  # "run" num_runs is the padding after the last
    while beyond - run > 1:
        middle = (run + beyond) // 2
        block = (tl.load(starts_ptr + middle) - first_token) * GROUP // BLOCK_M + middle
        before = block <= row_block
        run = tl.where(before, middle, run)
        run_block = tl.where(before, block, run_block)
        beyond = tl.where(before, beyond, middle)
    return run, run_block


@triton.jit
def _attend_keys(
    acc,  # [BLOCK_M, BLOCK_D]
    total,  # [BLOCK_M]
    maximum,  # [BLOCK_M], of scaled scores
    q,  # [BLOCK_M, BLOCK_D]
    kv_ptr,
    table_ptr,
    start,
    end,
    pos,  # [BLOCK_M]
    first_key,
    num_keys,
    qk_scale,
    window,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Running softmax over the tiles of keys at start, start + BLOCK_N … below `end`."""
    d = tl.arange(0, BLOCK_D)
    n = start + tl.arange(0, BLOCK_N)
    # A tile's block ids are loaded one tile ahead: its K and V can then be requested without waiting for them.
    block = tl.load(table_ptr + n // BLOCK_SIZE, mask=(n >= first_key) & (n < num_keys), other=0)
    for tile_start in tl.range(start, end, BLOCK_N, num_stages=NUM_STAGES):
        n = tile_start + tl.arange(0, BLOCK_N)
        exists = (n >= first_key) & (n < num_keys)
        slot = block.to(tl.int64) * (NUM_KV_HEADS * 2 * BLOCK_SIZE * HEAD_DIM) + n % BLOCK_SIZE * HEAD_DIM
        k_ptrs = kv_ptr + slot[:, None] + d[None, :]  # [BLOCK_N, BLOCK_D]
        v_ptrs = k_ptrs + BLOCK_SIZE * HEAD_DIM
        if MASKED or HEAD_DIM != BLOCK_D:
            loaded = exists[:, None] & (d < HEAD_DIM)[None, :]
            k = tl.load(k_ptrs, mask=loaded, other=0.0).to(q.dtype)
            v = tl.load(v_ptrs, mask=loaded, other=0.0).to(q.dtype)
        else:
            k = tl.load(k_ptrs).to(q.dtype)
            v = tl.load(v_ptrs).to(q.dtype)
        n_next = n + BLOCK_N
        block = tl.load(table_ptr + n_next // BLOCK_SIZE, mask=n_next < num_keys, other=0)
        scores = tl.dot(q, k.T, input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        if MASKED:
            visible = n[None, :] <= pos[:, None]
            if WINDOWED:
                visible = visible & (n[None, :] > (pos - window)[:, None])
            scores = tl.where(visible, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * qk_scale)
        # A row may have seen no key yet: −inf − −inf is NaN.
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum) if WINDOWED else new_maximum
        weights = tl.exp2(scores * qk_scale - shift[:, None])
        decay = tl.exp2(maximum - shift)
        total = total * decay + tl.sum(weights, 1)
        acc = tl.dot(weights.to(q.dtype), v, acc * decay[:, None], input_precision=PRECISION)
        maximum = new_maximum
    return acc, total, maximum


def launch_attention(batch: Batch, out: Tensor, tile: Tile, runs: range, tokens: range) -> None:
    """Our kernel over some runs and their tokens; tokens of `tokens` after the last of `runs` get zeros."""
    if not tokens:
        return
    num_kv_heads, _, block_size, head_dim = batch.kv_layer.shape[1:]
    num_row_blocks = len(tokens) * batch.group // tile.block_m + len(runs) + 1
    _attention_kernel[num_kv_heads, num_row_blocks](
        batch.q,
        batch.kv_layer,
        out,
        batch.block_tables,
        batch.rows,
        batch.positions,
        batch.row_starts[runs.start :],
        len(runs),
        tokens.start,
        tokens.stop,
        batch.q.stride(0),
        out.stride(0),
        batch.block_tables.stride(0),
        batch.scale * batch.k_scale * _LOG2_E,
        float(batch.v_scale),
        batch.window or 0,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=batch.group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOWED=batch.window is not None,
        PRECISION="ieee" if batch.q.dtype == torch.float32 else "tf32",
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=triton.next_power_of_2(head_dim),
        NUM_STAGES=tile.num_stages,
        num_warps=tile.num_warps,
    )


def prefill_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    rows: Tensor,
    positions: Tensor,
    row_starts: Tensor,
    *,
    max_row_tokens: int,
    max_context: int,
    scale: float,
    window: int | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out: Tensor | None = None,
    runs: Sequence[Run] | None = None,
) -> Tensor:
    """[T, num_heads, head_dim]; operands as the module says. `max_row_tokens` and `max_context` bound the tokens of a
    run and the last position + 1; a window of at least `max_context` is none. `runs`, if given, tells the host what
    `row_starts`, `rows` and `positions` tell the device; long runs may then go to cuDNN, whose launch needs their
    lengths. Raises ValueError for operands the module excludes."""
    window = None if window is None or max_context <= window else window
    batch = Batch(q, kv_layer, block_tables, rows, positions, row_starts, scale, window, k_scale, v_scale)
    _check(batch, runs)
    if out is None and runs and runs[0].num_tokens == len(q) and goes_to_vendor(batch, runs[0]):
        return cudnn_attention(q, kv_layer, block_tables, rows, runs[0], scale, k_scale, v_scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    _check_out(q, out)
    if not launches(q):
        return out.copy_(ref_prefill_attention(batch))
    tile = choose_tile(batch, max_row_tokens, max_context)
    first_run = first_token = 0
    for index, run in enumerate(runs or ()):
        if goes_to_vendor(batch, run):
            end = run.first_token + run.num_tokens
            launch_attention(batch, out, tile, range(first_run, index), range(first_token, run.first_token))
            cudnn_attention(
                q, kv_layer, block_tables, rows, run, scale, k_scale, v_scale, out=out[run.first_token : end]
            )
            first_run, first_token = index + 1, end
    launch_attention(batch, out, tile, range(first_run, len(row_starts) - 1), range(first_token, len(q)))
    return out


def goes_to_vendor(batch: Batch, run: Run) -> bool:
    """Whether cuDNN takes a run, and faster than our kernel would."""
    return run.num_tokens >= VENDOR_MIN_TOKENS and batch.window is None and cudnn_accepts(batch.q)


def _check(batch: Batch, runs: Sequence[Run] | None) -> None:
    q, kv_layer = batch.q, batch.kv_layer
    if q.ndim != 3 or q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"q must be [T, num_heads, head_dim] of fp32, bf16 or fp16, not {q.dtype} {tuple(q.shape)}")
    if kv_layer.ndim != 5 or not kv_layer.is_contiguous() or kv_layer.dtype not in KV_DTYPES:
        raise ValueError(f"kv_layer must be five contiguous dimensions of {KV_DTYPES}, not {kv_layer.dtype}")
    num_kv_heads, two, block_size, head_dim = kv_layer.shape[1:]
    if two != 2 or head_dim != q.shape[2] or q.shape[1] % num_kv_heads:
        raise ValueError(f"kv_layer {tuple(kv_layer.shape)} does not fit q {tuple(q.shape)}")
    if block_size & (block_size - 1):
        raise ValueError(f"block_size must be a power of two, not {block_size}")
    if q.stride()[1:] != (head_dim, 1):
        raise ValueError(f"the last two dimensions of q must be contiguous, not of strides {q.stride()}")
    if not batch.scale > 0 or not batch.k_scale > 0 or (batch.window is not None and batch.window < 1):
        raise ValueError(f"scale {batch.scale}, k_scale {batch.k_scale} and window {batch.window} must be positive")
    if len(batch.rows) != len(q) or len(batch.positions) != len(q):
        raise ValueError(f"{len(q)} tokens, but {len(batch.rows)} rows and {len(batch.positions)} positions")
    if runs is not None and len(runs) != len(batch.row_starts) - 1:
        raise ValueError(f"{len(runs)} runs, but row_starts tells of {len(batch.row_starts) - 1}")
    for name in ("block_tables", "rows", "positions", "row_starts"):
        if (tensor := getattr(batch, name)).dtype != torch.int32 or tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be int32 with a contiguous last dimension")


def _check_out(q: Tensor, out: Tensor) -> None:
    if out.shape != q.shape or out.dtype != q.dtype or out.stride()[1:] != (q.shape[2], 1):
        raise ValueError(
            f"out {out.dtype} {tuple(out.shape)} of strides {out.stride()} does not fit q {tuple(q.shape)}"
        )
