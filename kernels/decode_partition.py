"""Even shares of a batch's KV for the programs of paged decode attention, worked out on the device once a step.

A row's context (what its window lets it see) is cut into tiles of `tile` keys, at least one a row. The tiles of all
rows in a line are dealt to N parts, part p taking tiles ⌊p·T / N⌋ … ⌊(p + 1)·T / N⌋ − 1 of T. N is the workspace's
num_parts, or less if parts would have fewer than `min_tiles`; the rest are empty. A program is one part of one KV head:
however ragged the batch, no program has more than one tile more than another. Neither grid nor memory depends on
lengths, so a CUDA graph can hold them.
Source: the "stream-K" decomposition of Osama et al., PPoPP 2023, with a row's KV in the place of a matrix tile's K.

Shapes, all int32: `rows` [B] (the row in the block tables, −1 = padding), `positions` [B], and in the workspace
    row_tiles [B + 1]             the first tile of a row, and T
    row_slots [B, 2]              the slot of a row's first part, and its last part
    part_tiles [num_parts + 1]    the first tile of a part (T, where a part is empty)
    part_rows [num_parts]         the row of that tile (B, where a part is empty)
Part p has two slots for partial results: 2p for the row it begins with, 2p + 1 for the row it ends in, if another.
Asserted: T < 2³¹. Positions of padding may be anything.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches, num_multiprocessors

_PARTS_A_PROGRAM = 16


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How paged decode attention cuts its work; of performance alone."""

    tile: int
    """Keys of one step of a program's loop, a power of two."""
    num_warps: int
    num_stages: int
    programs_per_sm: int
    """As many as fit at once, or a second wave begins when the first is nearly done."""
    min_tiles: int = 1
    """Of a part: fewer parts have fewer partial results to merge, more parts read faster."""


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """What paged decode attention writes beside its output; for one stream, every layer and any batch up to max_batch.
    Layers with another window, or of another shape, have a workspace of their own."""

    config: DecodeConfig
    window: int | None
    num_heads: int
    num_kv_heads: int
    row_tiles: Tensor
    row_slots: Tensor
    part_tiles: Tensor
    part_rows: Tensor
    partials: Tensor
    """fp32 [num_parts, 2, num_heads, head_dim]: sums of exp(score − max)·V of a part's first row and of its last."""
    softmax: Tensor
    """fp32 [num_parts, 2, num_heads, 2]: for each of them the maximum of the scores (base 2) and the sum."""
    arrivals: Tensor
    """int32 [max_batch, num_kv_heads], 0 between launches: how many parts of a row are done."""

    @property
    def max_batch(self) -> int:
        return len(self.row_slots)

    @property
    def num_parts(self) -> int:
        return len(self.part_rows)


def decode_config(head_dim: int, kv_dtype: torch.dtype) -> DecodeConfig:
    """By the bytes of a token's K or V, padded to a power of two as the kernel does."""
    num_bytes = triton.next_power_of_2(head_dim) * kv_dtype.itemsize
    if kv_dtype == torch.float32:
        return DecodeConfig(tile=32 if num_bytes <= 512 else 16, num_warps=4, num_stages=2, programs_per_sm=1)
    tile = min(128, max(16, 64 * 256 // num_bytes))
    return DecodeConfig(tile=tile, num_warps=4, num_stages=3, programs_per_sm=2)


def decode_workspace(
    max_batch: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv_dtype: torch.dtype,
    device: torch.device,
    *,
    window: int | None = None,
    config: DecodeConfig | None = None,
) -> DecodeWorkspace:
    """Raises ValueError on a window below 1, or query heads that KV heads do not divide."""
    if window is not None and window < 1:
        raise ValueError(f"window is {window}: a token sees at least itself")
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads over {num_kv_heads} KV heads")
    config = config or decode_config(head_dim, kv_dtype)
    num_parts = max(1, num_multiprocessors(device) * config.programs_per_sm // num_kv_heads)

    def integers(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=device)

    return DecodeWorkspace(
        config=config,
        window=window,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        row_tiles=integers(max_batch + 1),
        row_slots=integers(max_batch, 2),
        part_tiles=integers(num_parts + 1),
        part_rows=integers(num_parts),
        partials=torch.empty(num_parts, 2, num_heads, head_dim, device=device),
        softmax=torch.empty(num_parts, 2, num_heads, 2, device=device),
        arrivals=integers(max_batch, num_kv_heads),
    )


def ref_partition_decode(rows: Tensor, positions: Tensor, *, workspace: DecodeWorkspace) -> None:
    config, batch, max_parts = workspace.config, len(rows), workspace.num_parts
    contexts = torch.where(rows < 0, 0, positions + 1).long()
    first_keys = (contexts - (workspace.window or 2**31)).clamp(min=0)
    tiles = (-(-contexts // config.tile) - first_keys // config.tile).clamp(min=1)
    ends = tiles.cumsum(0)
    total = int(ends[-1])
    num_parts = min(max_parts, -(-total // config.min_tiles))
    part_tiles = torch.arange(max_parts + 1, device=rows.device).clamp(max=num_parts) * total // num_parts
    first_parts = -(-(ends - tiles + 1) * num_parts // total) - 1
    workspace.row_tiles[0] = 0
    workspace.row_tiles[1 : batch + 1] = ends
    workspace.row_slots[:batch, 0] = first_parts * 2 + (ends - tiles > part_tiles[first_parts])
    workspace.row_slots[:batch, 1] = -(-ends * num_parts // total) - 1
    workspace.part_tiles[:] = part_tiles
    workspace.part_rows[:] = torch.searchsorted(ends, part_tiles[:-1], right=True)


@triton.jit
def _partition_kernel(
    rows,
    positions,
    row_tiles,
    row_slots,
    part_tiles,
    part_rows,
    batch,
    max_parts,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MIN_TILES: tl.constexpr,
    BATCH: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.arange(0, BATCH)  # [BATCH]
    exists = row < batch
    padding = tl.load(rows + row, mask=exists, other=-1) < 0
    context = tl.where(padding, 0, tl.load(positions + row, mask=exists, other=0) + 1)
    first_key = tl.maximum(context - WINDOW, 0) if WINDOW else 0
    tiles = tl.where(exists, tl.maximum((context + TILE - 1) // TILE - first_key // TILE, 1), 0)
    ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    # A tile times a number of parts can pass 2^31.
    num_parts = tl.minimum((total + MIN_TILES - 1) // MIN_TILES, max_parts).to(tl.int64)

    part = tl.program_id(0) * PARTS + tl.arange(0, PARTS)  # [PARTS]
    starts = (tl.minimum(part, num_parts) * total // num_parts).to(tl.int32)
    before = (ends[None, :] <= starts[:, None]) & exists[None, :]  # [PARTS, BATCH]
    tl.store(part_tiles + part, starts, mask=part <= max_parts)
    tl.store(part_rows + part, tl.sum(before.to(tl.int32), 1), mask=part < max_parts)

    if tl.program_id(0) == 0:
        tl.store(row_tiles + row, ends - tiles, mask=exists)
        tl.store(row_tiles + batch, total)
        # The part of tile t is the last p with ⌊p·T / N⌋ ≤ t: ⌈(t + 1)·N / T⌉ − 1.
        begin = ends - tiles
        first_part = ((begin + 1) * num_parts + total - 1) // total - 1
        last_part = (ends * num_parts + total - 1) // total - 1
        first_slot = first_part * 2 + (begin > first_part * total // num_parts)
        tl.store(row_slots + row * 2, first_slot.to(tl.int32), mask=exists)
        tl.store(row_slots + row * 2 + 1, last_part.to(tl.int32), mask=exists)


def partition_decode(rows: Tensor, positions: Tensor, *, workspace: DecodeWorkspace, pdl: bool = False) -> None:
    """Prepares `workspace` for `paged_decode_attention` on these rows (int32 [B]) and positions (int32 [B], the new
    token's): once a step, for all layers. `pdl`: a programmatic dependent launch.

    Raises ValueError on shapes, dtypes or strides it does not take, or a batch above the workspace's."""
    check_step(rows, positions, workspace)
    if not launches(rows):
        ref_partition_decode(rows, positions, workspace=workspace)
        return
    config = workspace.config
    _partition_kernel[(triton.cdiv(workspace.num_parts + 1, _PARTS_A_PROGRAM),)](
        rows,
        positions,
        workspace.row_tiles,
        workspace.row_slots,
        workspace.part_tiles,
        workspace.part_rows,
        len(rows),
        workspace.num_parts,
        WINDOW=workspace.window or 0,
        TILE=config.tile,
        MIN_TILES=config.min_tiles,
        BATCH=triton.next_power_of_2(len(rows)),
        PARTS=_PARTS_A_PROGRAM,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )


def check_step(rows: Tensor, positions: Tensor, workspace: DecodeWorkspace) -> None:
    """Raises ValueError unless both are int32 [B], contiguous, 1 ≤ B ≤ the workspace's max_batch."""
    if not 1 <= rows.numel() <= workspace.max_batch:
        raise ValueError(f"a batch of {rows.numel()} in a workspace for 1 … {workspace.max_batch}")
    for name, tensor in (("rows", rows), ("positions", positions)):
        if tensor.shape != (len(rows),) or tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not contiguous int32 [{len(rows)}]")
