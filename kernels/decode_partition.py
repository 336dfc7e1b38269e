"""Even shares of a batch's KV for the programs of paged decode attention, worked out on the device once a step.

A row's context (what its windows let its tokens see) is cut into tiles of `tile` keys, at least one a row, T in all. Up
to N parts share them, N being the workspace's num_parts, or less if parts would have fewer than `min_tiles`, or if the
rows are runs of so many tokens that several programs share each part (RunSplit):
  - where every row can have parts of its own, none of more than ⌈T / N⌉ + 1 tiles, it has: going on to another row
    within a part costs as much as a tile. A row of t tiles is cut into as few as that allows, part i of n taking its
    tiles ⌊i·t / n⌋ … ⌊(i + 1)·t / n⌋ − 1;
  - else the tiles of all rows in a line are dealt, part p taking ⌊p·T / N⌋ … ⌊(p + 1)·T / N⌋ − 1.
A program is one part of one KV head, or of some of its tokens: however ragged the batch, none has much more to do than
another. Neither grid nor memory depends on lengths, so a CUDA graph can hold them.
Source: the "stream-K" decomposition of Osama et al., PPoPP 2023, with a row's KV in the place of a matrix tile's K.

Shapes, all int32: `rows` [B] (the row in the block tables, −1 = padding), `positions` [B] (of the row's first token),
of runs `lengths` [B] (how many of a run's tokens exist), and in the workspace
    row_records [max_batch + 1, ROW_FIELDS]    of each row: its first tile, the tile after its last, its row in the
                                               block tables, its context (0 of padding), the slot of its first part,
                                               its last part; of runs also the first token's context
    part_records [num_parts, PART_FIELDS]      of each part: its first tile, the tile after its last, the first row b it
                                               has a share in, the number of them (0: an empty part), and at
                                               ROW_OF_PART row b's record: a program begins after one load
Part p has two slots for partial results: 2p for the row it begins with, 2p + 1 for the row it ends in, if another.
Of an empty part the first two numbers and the record's first are T, its context 0; b and the rest mean nothing.
Asserted: T < 2³¹. Positions of padding may be anything.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches, num_multiprocessors

ROW_FIELDS = tl.constexpr(8)
"""Seven, and room: a record is one sector of 32 bytes."""
FIRST_CONTEXT = tl.constexpr(6)
"""Of a row's record."""
PART_FIELDS = tl.constexpr(16)
ROW_OF_PART = tl.constexpr(8)
"""Where the copy of the row's record begins."""

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
    max_queries: int = 64
    """Of a program: tokens of a run × the query heads of a KV head. Of more, several programs read the same KV."""


@dataclass(frozen=True, slots=True)
class RunSplit:
    """How programs share a row's run of tokens."""

    tokens: int
    """Of a program; the last one may have less."""
    programs: int
    """Of a part and KV head."""
    num_parts: int
    """For which there is room beside one another."""


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """What paged decode attention writes beside its output; for one stream, every layer and any batch up to max_batch.
    Layers with another window, or of another shape, have a workspace of their own."""

    config: DecodeConfig
    window: int | None
    num_heads: int
    num_kv_heads: int
    run_length: int
    """Tokens of a row, at most."""
    row_records: Tensor
    part_records: Tensor
    partials: Tensor
    """fp32 [num_parts, 2, num_queries, head_dim]: what a part makes of its first row, and of its last."""
    log_sums: Tensor
    """fp32 [num_parts, 2, num_queries]: for each of them log2 Σ exp2(score)."""
    arrivals: Tensor
    """int32 [max_batch, programs of a part], 0 between launches: how many parts of a row are done."""

    @property
    def max_batch(self) -> int:
        return len(self.arrivals)

    @property
    def num_parts(self) -> int:
        return len(self.part_records)

    def split(self, run_length: int) -> RunSplit:
        return _split_run(run_length, self.num_heads // self.num_kv_heads, self.num_parts, self.config)


def decode_config(head_dim: int, kv_dtype: torch.dtype) -> DecodeConfig:
    """By the bytes of a token's K or V, padded to a power of two as the kernel does."""
    padded_dim = triton.next_power_of_2(head_dim)
    num_bytes = padded_dim * kv_dtype.itemsize
    if kv_dtype == torch.float32:
        tile = 32 if num_bytes <= 512 else 16
        return DecodeConfig(tile, num_warps=4, num_stages=2, programs_per_sm=1, max_queries=32)
    tile = min(128, max(16, 64 * 256 // num_bytes))
    # Twice as many would not fit in registers: their sums, or what of fp8 is between two formats.
    max_queries = 32 if kv_dtype.itemsize == 1 or padded_dim > 128 else 64
    return DecodeConfig(
        tile, num_warps=4, num_stages=3, programs_per_sm=2, min_tiles=128 // tile, max_queries=max_queries
    )


def decode_workspace(
    max_batch: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv_dtype: torch.dtype,
    device: torch.device,
    *,
    window: int | None = None,
    run_length: int = 1,
    config: DecodeConfig | None = None,
) -> DecodeWorkspace:
    """For rows of up to `run_length` tokens.

    Raises ValueError on a window or run length below 1, or query heads that KV heads do not divide."""
    if window is not None and window < 1:
        raise ValueError(f"window is {window}: a token sees at least itself")
    if run_length < 1:
        raise ValueError(f"run_length is {run_length}: a row has at least one token")
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads over {num_kv_heads} KV heads")
    config = config or decode_config(head_dim, kv_dtype)
    num_parts = max(1, num_multiprocessors(device) * config.programs_per_sm // num_kv_heads)
    split = _split_run(run_length, num_heads // num_kv_heads, num_parts, config)
    num_queries = num_heads * split.tokens * split.programs

    def integers(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=device)

    return DecodeWorkspace(
        config=config,
        window=window,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        run_length=run_length,
        row_records=integers(max_batch + 1, ROW_FIELDS.value),
        part_records=integers(num_parts, PART_FIELDS.value),
        partials=torch.empty(num_parts, 2, num_queries, head_dim, device=device),
        log_sums=torch.empty(num_parts, 2, num_queries, device=device),
        arrivals=integers(max_batch, num_kv_heads * split.programs),
    )


def _split_run(run_length: int, group: int, num_parts: int, config: DecodeConfig) -> RunSplit:
    programs = triton.cdiv(run_length, max(1, config.max_queries // group))
    return RunSplit(triton.cdiv(run_length, programs), programs, max(1, num_parts // programs))


def ref_partition_decode(
    rows: Tensor,
    positions: Tensor,
    *,
    workspace: DecodeWorkspace,
    run_length: int = 1,
    lengths: Tensor | None = None,
) -> None:
    config, batch, max_parts = workspace.config, len(rows), workspace.split(run_length).num_parts
    lengths = torch.full_like(positions, run_length) if lengths is None or run_length == 1 else lengths
    first_contexts = torch.where(rows < 0, 0, positions + 1).long()
    contexts = torch.where(rows < 0, 0, positions + lengths).long()
    first_keys = (first_contexts - (workspace.window or 2**31)).clamp(min=0)
    tiles = (-(-contexts // config.tile) - first_keys // config.tile).clamp(min=1)
    ends = tiles.cumsum(0)
    begins, total = ends - tiles, int(ends[-1])
    num_parts = min(max_parts, -(-total // config.min_tiles))
    least = -(-total // num_parts)
    for most in (least, least + 1):
        row_parts = -(-tiles // most)
        if int(row_parts.sum()) <= max_parts:
            first_parts = row_parts.cumsum(0) - row_parts
            first_slots, last_parts = first_parts * 2, first_parts + row_parts - 1
            part_rows = torch.arange(batch, device=rows.device).repeat_interleave(row_parts)
            nth = torch.arange(len(part_rows), device=rows.device) - first_parts[part_rows]
            starts = begins[part_rows] + nth * tiles[part_rows] // row_parts[part_rows]
            empty = max_parts - len(part_rows)
            borders = torch.cat((starts, starts.new_full((empty + 1,), total)))
            part_rows = torch.cat((part_rows, part_rows.new_full((empty,), batch)))
            break
    else:
        borders = torch.arange(max_parts + 1, device=rows.device).clamp(max=num_parts) * total // num_parts
        first_parts = -(-(begins + 1) * num_parts // total) - 1
        first_slots = first_parts * 2 + (begins > borders[first_parts])
        last_parts = -(-ends * num_parts // total) - 1
        part_rows = torch.searchsorted(ends, borders[:-1], right=True)
    fields = [begins, ends, rows.long(), contexts, first_slots, last_parts, first_contexts]
    records = torch.stack(fields if run_length > 1 else fields[:-1], 1)
    num_fields = records.shape[1]
    workspace.row_records[:batch, :num_fields] = records
    starts, stops = borders[:-1], borders[1:]
    num_rows = torch.where(starts < stops, torch.searchsorted(ends, stops - 1, right=True) + 1 - part_rows, 0)
    part_records = workspace.part_records[:max_parts]
    part_records[:, :4] = torch.stack((starts, stops, part_rows, num_rows), 1)
    part_records[:, ROW_OF_PART.value :][:, :num_fields] = records[part_rows.clamp(max=batch - 1)]


@triton.jit
def _num_tiles(first_context, context, WINDOW: tl.constexpr, TILE: tl.constexpr):
    first_key = tl.maximum(first_context - WINDOW, 0) if WINDOW else 0
    return tl.maximum((context + TILE - 1) // TILE - first_key // TILE, 1)


@triton.jit
def _dealt(begin, end, num_parts, total):
    """Slot of the first part and last part of tiles begin … end − 1 in a line."""
    # The part of tile t is the last p with ⌊p·T / N⌋ ≤ t: ⌈(t + 1)·N / T⌉ − 1.
    first_part = ((begin + 1) * num_parts + total - 1) // total - 1
    last_part = (end * num_parts + total - 1) // total - 1
    first_slot = first_part * 2 + (begin > first_part * total // num_parts)
    return first_slot.to(tl.int32), last_part.to(tl.int32)


@triton.jit
def _context(first_context, lengths, row, exists, RUN: tl.constexpr):
    """Of a row's last token, by its first token's; 0 of padding."""
    context = first_context
    if RUN > 1:
        length = RUN if lengths is None else tl.load(lengths + row, mask=exists, other=1)
        context = tl.where(first_context > 0, first_context + length - 1, 0)
    return context


@triton.jit
def _store_row(record, begin, end, table_row, context, first_slot, last_part, first_context, mask, RUN: tl.constexpr):
    tl.store(record, begin, mask=mask)
    tl.store(record + 1, end, mask=mask)
    tl.store(record + 2, table_row, mask=mask)
    tl.store(record + 3, context, mask=mask)
    tl.store(record + 4, first_slot, mask=mask)
    tl.store(record + 5, last_part, mask=mask)
    if RUN > 1:
        tl.store(record + FIRST_CONTEXT, first_context, mask=mask)


@triton.jit
def load_row(record):
    """First tile, tile after the last, row in the block tables, context, slot of the first part, last part."""
    begin, end = tl.load(record), tl.load(record + 1)
    table_row, context = tl.load(record + 2), tl.load(record + 3)
    return begin, end, table_row, context, tl.load(record + 4), tl.load(record + 5)


@triton.jit(
    do_not_specialize=["batch", "max_parts", "min_tiles"],
    do_not_specialize_on_alignment=["rows", "positions", "lengths"],
)
def _partition_kernel(
    rows,
    positions,
    lengths,  # None: all of a run
    row_records,
    part_records,
    batch,
    max_parts,
    min_tiles,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    RUN: tl.constexpr,
    BATCH: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.arange(0, BATCH)  # [BATCH]
    exists = row < batch
    table_row = tl.load(rows + row, mask=exists, other=-1)
    position = tl.load(positions + row, mask=exists, other=0)
    first_context = tl.where(table_row < 0, 0, position + 1)
    context = _context(first_context, lengths, row, exists, RUN)
    tiles = tl.where(exists, _num_tiles(first_context, context, WINDOW, TILE), 0)
    ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    # A tile times a number of parts can pass 2^31.
    num_parts = tl.minimum((total + min_tiles - 1) // min_tiles, max_parts).to(tl.int64)
    least = ((total + num_parts - 1) // num_parts).to(tl.int32)
    fits = tl.sum((tiles + least - 1) // least, 0) <= max_parts
    most = tl.where(fits, least, least + 1)
    row_parts = (tiles + most - 1) // most  # [BATCH], of its own
    row_part_ends = tl.cumsum(row_parts, 0)
    by_rows = tl.sum(row_parts, 0) <= max_parts

    part = tl.program_id(0) * PARTS + tl.arange(0, PARTS)  # [PARTS]
    start = (tl.minimum(part, num_parts) * total // num_parts).to(tl.int32)
    stop = (tl.minimum(part + 1, num_parts) * total // num_parts).to(tl.int32)
    dealt_before = ends[None, :] <= start[:, None]  # [PARTS, BATCH]
    before = tl.where(by_rows, row_part_ends[None, :] <= part[:, None], dealt_before) & exists[None, :]
    b = tl.sum(before.to(tl.int32), 1)
    begin = tl.sum(tl.where(before, tiles[None, :], 0), 1)
    first_part = tl.sum(tl.where(before, row_parts[None, :], 0), 1)

    valid, filled = part < max_parts, b < batch
    own_table_row = tl.load(rows + b, mask=filled, other=-1)
    own_position = tl.load(positions + b, mask=filled, other=0)
    own_first = tl.where(own_table_row < 0, 0, own_position + 1)
    own_context = _context(own_first, lengths, b, filled, RUN)
    own_tiles = _num_tiles(own_first, own_context, WINDOW, TILE)
    own_parts = (own_tiles + most - 1) // most
    last_before = (ends[None, :] < stop[:, None]) & exists[None, :]
    dealt_rows = tl.where(start < stop, tl.sum(last_before.to(tl.int32), 1) + 1 - b, 0)
    nth = (part - first_part).to(tl.int64)
    own_start = tl.where(filled, begin + (nth * own_tiles // own_parts).to(tl.int32), total)
    own_stop = tl.where(filled, begin + ((nth + 1) * own_tiles // own_parts).to(tl.int32), total)
    dealt_slot, dealt_last = _dealt(begin, begin + own_tiles, num_parts, total)
    slot = tl.where(by_rows, first_part * 2, dealt_slot)
    last = tl.where(by_rows, first_part + own_parts - 1, dealt_last)
    record = part_records + part * PART_FIELDS
    tl.store(record, tl.where(by_rows, own_start, start), mask=valid)
    tl.store(record + 1, tl.where(by_rows, own_stop, stop), mask=valid)
    tl.store(record + 2, b, mask=valid)
    tl.store(record + 3, tl.where(by_rows, filled.to(tl.int32), dealt_rows), mask=valid)
    own_record = record + ROW_OF_PART
    end = begin + own_tiles
    # An empty part's too: of no context, at the end. It works out where its keys would be before it sees it has none.
    _store_row(own_record, begin, end, own_table_row, own_context, slot, last, own_first, valid, RUN)

    if tl.program_id(0) == 0:
        dealt_slots, dealt_lasts = _dealt(ends - tiles, ends, num_parts, total)
        slots = tl.where(by_rows, (row_part_ends - row_parts) * 2, dealt_slots)
        lasts = tl.where(by_rows, row_part_ends - 1, dealt_lasts)
        row_record = row_records + row * ROW_FIELDS
        _store_row(row_record, ends - tiles, ends, table_row, context, slots, lasts, first_context, exists, RUN)


def partition_decode(
    rows: Tensor,
    positions: Tensor,
    *,
    workspace: DecodeWorkspace,
    run_length: int = 1,
    lengths: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Prepares `workspace` for `paged_decode_attention` on these rows (int32 [B]) and positions (int32 [B], the new
    token's): once a step, for all layers. `pdl`: a programmatic dependent launch.

    With `run_length` R > 1, rows are runs of up to R new tokens and positions are their first tokens'; `lengths`
    (int32 [B]) says of each row how many of 1 … R tokens exist, None that all do.
    Raises ValueError on shapes, dtypes or strides it does not take, or a batch or run above the workspace's."""
    check_step(rows, positions, workspace, run_length, lengths)
    if not launches(rows):
        ref_partition_decode(rows, positions, workspace=workspace, run_length=run_length, lengths=lengths)
        return
    config, num_parts = workspace.config, workspace.split(run_length).num_parts
    _partition_kernel[(triton.cdiv(num_parts, _PARTS_A_PROGRAM),)](
        rows,
        positions,
        lengths if run_length > 1 else None,
        workspace.row_records,
        workspace.part_records,
        len(rows),
        num_parts,
        config.min_tiles,
        WINDOW=workspace.window or 0,
        TILE=config.tile,
        RUN=run_length,
        BATCH=triton.next_power_of_2(len(rows)),
        PARTS=_PARTS_A_PROGRAM,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )


def check_step(
    rows: Tensor, positions: Tensor, workspace: DecodeWorkspace, run_length: int = 1, lengths: Tensor | None = None
) -> None:
    """Raises ValueError unless all are int32 [B], contiguous, and batch and run no larger than the workspace's."""
    if not 1 <= rows.numel() <= workspace.max_batch:
        raise ValueError(f"a batch of {rows.numel()} in a workspace for 1 … {workspace.max_batch}")
    if not 1 <= run_length <= workspace.run_length:
        raise ValueError(f"runs of {run_length} tokens in a workspace for 1 … {workspace.run_length}")
    for name, tensor in (("rows", rows), ("positions", positions), ("lengths", lengths)):
        if tensor is None:
            continue
        if tensor.shape != (len(rows),) or tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not contiguous int32 [{len(rows)}]")
