import math
from dataclasses import dataclass, fields, replace

import pytest
import torch
from isthmus.kernels.decode_partition import (
    ROW_OF_PART,
    DecodeConfig,
    decode_config,
    decode_workspace,
    partition_decode,
    ref_partition_decode,
)
from isthmus.kernels.paged_decode_attention import paged_decode_attention, ref_paged_decode_attention

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
TOLERANCE = {BF16: 3e-3, FP16: 8e-4, FP32: 3e-6}
"""Of ‖out − ref‖ / ‖ref‖ by the dtype of q, in which weights are rounded and sums are not."""


@dataclass(frozen=True)
class Shape:
    contexts: tuple[int, ...]
    """Of a row's last token; 0 is padding."""
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    dtype: torch.dtype = FP32
    kv_dtype: torch.dtype | None = None
    k_scale: float = 1.0
    v_scale: float = 1.0
    config: DecodeConfig | None = None
    run_length: int = 1
    lengths: tuple[int, ...] | None = None
    """Tokens of each row, by turns; None: `run_length`."""
    first_position: int = 0

    @property
    def row_lengths(self):
        lengths = self.lengths or (self.run_length,)
        return [lengths[b % len(lengths)] for b in range(len(self.contexts))]

    @property
    def tolerance(self):
        """Products with fp8 are of fp16."""
        return max(TOLERANCE[self.dtype], TOLERANCE[FP16] if self.kv_dtype in (E4M3, E5M2) else 0)

    def __str__(self):
        config = self.config and "-".join(str(getattr(self.config, field.name)) for field in fields(self.config))
        contexts = "-".join(map(str, self.contexts)) if len(self.contexts) < 9 else f"{len(self.contexts)}rows"
        names = [str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.kv_dtype) if dtype]
        heads = f"{self.num_heads}on{self.num_kv_heads}x{self.head_dim}"
        lengths = "-".join(map(str, self.lengths or ()))
        runs = [f"runs{self.run_length}of{lengths}" if lengths else f"runs{self.run_length}"] * (self.run_length > 1)
        parts = [contexts, *runs, heads, f"block{self.block_size}", *names]
        parts += [f"from{self.first_position}"] * bool(self.first_position)
        parts += [f"window{self.window}"] * bool(self.window) + [f"config{config}"] * bool(config)
        return "_".join(parts)


class Step:
    """Random KV of a batch in shuffled blocks. NaN in every slot that holds no token of its row and in the queries of
    tokens that do not exist, garbage in every entry of a table that holds no block of its row, table rows in another
    order than the batch. Of runs, all first tokens come before all second ones."""

    def __init__(self, shape, device, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.shape, batch = shape, len(shape.contexts)
        size, kv_dtype = shape.block_size, shape.kv_dtype or shape.dtype
        counts = [math.ceil(context / size) for context in shape.contexts]
        num_blocks = sum(counts) + 3
        kv = torch.full((num_blocks, shape.num_kv_heads, 2, size, shape.head_dim), math.nan)
        free = torch.randperm(num_blocks, generator=generator).tolist()
        width = math.ceil((max(counts) + 1) / 16) * 16
        tables = torch.full((batch + 2, width), 2**31 - 1, dtype=torch.int32)
        rows = torch.randperm(batch + 2, generator=generator)[:batch].int()
        for row, context, length, count in zip(rows.tolist(), shape.contexts, shape.row_lengths, counts, strict=True):
            blocks = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
            first = max(0, context - length + 1 - shape.window) if shape.window else 0
            keys = torch.arange(max(first, min(shape.first_position, context)), context)
            tokens = torch.randn(len(keys), shape.num_kv_heads, 2, shape.head_dim, generator=generator)
            kv[blocks[keys // size].long(), :, :, keys % size] = tokens
            tables[row, first // size : count] = blocks[first // size :]
        contexts = torch.tensor(shape.contexts, dtype=torch.int32)
        # q and out are slices of wider rows: of a fused projection, say.
        width = (shape.num_heads + 1) * shape.head_dim
        lengths = torch.tensor(shape.row_lengths, dtype=torch.int32)
        q = torch.randn(shape.run_length, batch, width, generator=generator)
        if shape.run_length > 1:
            q[torch.arange(shape.run_length)[:, None] >= torch.where(contexts > 0, lengths, 0)] = math.nan
        self.q = self.heads(q.to(device, shape.dtype))
        # After the last token lies another's place.
        self.wide_out = torch.full((len(q) + 1, batch, width), math.nan, dtype=shape.dtype, device=device)
        self.out = self.heads(self.wide_out[:-1])
        self.kv = kv.to(device, kv_dtype)
        self.tables, self.rows = tables.to(device), torch.where(contexts > 0, rows, -1).to(device)
        self.positions, self.lengths = (contexts - lengths).to(device), lengths.to(device)
        self.scales = {"k_scale": shape.k_scale, "v_scale": shape.v_scale, "scale": shape.head_dim**-0.5}
        self.workspace = decode_workspace(
            batch + 1,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            kv_dtype,
            torch.device(device),
            window=shape.window,
            run_length=shape.run_length,
            config=shape.config,
        )
        self.workspace.partials.fill_(math.nan)
        self.workspace.log_sums.fill_(math.nan)

    def heads(self, wide):
        """[B, num_heads, head_dim], or [B, R, num_heads, head_dim], of [R, B, num_heads + 1 heads]."""
        heads = wide[..., self.shape.head_dim :].unflatten(-1, (self.shape.num_heads, self.shape.head_dim))
        return heads.transpose(0, 1) if self.shape.run_length > 1 else heads[0]

    @property
    def runs(self):
        """What the partition has to know of runs."""
        lengths = None if self.shape.lengths is None else self.lengths
        return {} if self.shape.run_length == 1 else {"run_length": self.shape.run_length, "lengths": lengths}

    def partition(self):
        partition_decode(self.rows, self.positions, workspace=self.workspace, **self.runs)

    def run(self, **options):
        return paged_decode_attention(**{**self.inputs(), **self.scales, **self.options(), **options})

    def reference(self):
        inputs = {**self.inputs(), "q": self.q.double()}
        return ref_paged_decode_attention(**inputs, **self.scales, **self.seen())

    def seen(self):
        """Which keys are."""
        return {"window": self.shape.window, "first_position": self.shape.first_position}

    def inputs(self):
        return {
            "q": self.q,
            "kv_layer": self.kv,
            "block_tables": self.tables,
            "rows": self.rows,
            "positions": self.positions,
            **({"lengths": self.lengths} if self.shape.lengths else {}),
        }

    def options(self):
        return {"workspace": self.workspace, "out": self.out, **self.seen()}


def check_attention(shape, device):
    step = Step(shape, device)
    step.partition()
    out = step.run()
    assert out is step.out
    assert relative_error(out, step.reference()) < shape.tolerance
    assert not out[step.rows < 0].any()
    if shape.run_length > 1:
        assert not out[torch.arange(shape.run_length, device=device) >= step.lengths[:, None]].any()
    assert step.wide_out[..., : shape.head_dim].isnan().all()
    assert step.wide_out[-1].isnan().all()
    assert not step.workspace.arrivals.any()
    again = out.clone()
    out.fill_(math.nan)
    assert torch.equal(step.run(), again)


def relative_error(out, reference):
    difference = (out.double() - reference).norm() / reference.norm().clamp(min=1e-30)
    assert not out.isnan().any()
    return difference.item()


def check_partition(batch, even, run_length, config, window, device):
    generator = torch.Generator().manual_seed(batch)
    positions = torch.randint(-1, 700, (batch,), generator=generator).int()
    if even:
        positions[:] = 299
    rows, positions = torch.where(positions >= 0, torch.arange(batch), -1).int().to(device), positions.to(device)
    lengths = torch.randint(1, run_length + 1, (batch,), generator=generator).int().to(device)
    run = {"run_length": run_length, "lengths": None if even else lengths}

    def workspace():
        return decode_workspace(
            batch, 4, 2, 64, BF16, torch.device(device), window=window, run_length=run_length, config=config
        )

    ours, reference = workspace(), workspace()
    # What a fuller step left behind.
    partition_decode(torch.zeros_like(rows), torch.full_like(positions, 5000), workspace=ours, run_length=run_length)
    partition_decode(rows, positions, workspace=ours, **run)
    ref_partition_decode(rows, positions, workspace=reference, **run)
    assert ours.row_records.tolist() == reference.row_records.tolist()
    ours, reference = ours.part_records[: ours.split(run_length).num_parts], reference.part_records
    reference = reference[: len(ours)]
    assert ours[:, :4].tolist() == reference[:, :4].tolist()
    filled = ours[:, 0] < ours[:, 1]
    assert ours[filled].tolist() == reference[filled].tolist()
    record = ours[~filled, ROW_OF_PART.value :]
    assert (record[:, 0] == ours[-1, 1]).all()
    assert not record[:, 3].any()


SMALL = DecodeConfig(tile=16, num_warps=4, num_stages=2, programs_per_sm=1)
INTERPRETED = [
    Shape((1,), config=SMALL),
    Shape((15, 16, 17), config=SMALL),
    Shape((0, 33, 0, 70, 1), num_heads=6, num_kv_heads=2, config=replace(SMALL, programs_per_sm=2)),
    Shape((60, 5), num_heads=3, num_kv_heads=3, head_dim=80, block_size=8, config=SMALL),
    Shape((20, 3, 35, 17, 16, 40, 1, 33, 9), config=SMALL),  # three rows and more in a part
    Shape((40, 7, 100), window=20, config=SMALL),
    Shape((90, 3), config=replace(SMALL, min_tiles=3)),
    Shape((33, 1, 0, 17, 2), num_heads=3, first_position=1, config=SMALL),
    Shape((18, 90), window=17, first_position=2, kv_dtype=E5M2, config=SMALL),
    Shape((50, 20), block_size=32, kv_dtype=BF16, config=SMALL),
    Shape((37, 64), dtype=FP16, kv_dtype=E5M2, k_scale=0.5, v_scale=3.0, config=SMALL),
    Shape((33, 0), kv_dtype=E4M3, head_dim=96, k_scale=0.25, v_scale=0.5, config=SMALL),
    Shape((130,), num_heads=16, head_dim=128, dtype=FP16, config=replace(SMALL, num_warps=1)),  # four merges
]
PARTS_2, PARTS_3 = replace(SMALL, programs_per_sm=2), replace(SMALL, programs_per_sm=3)
INTERPRETED_RUNS = [
    Shape((2, 17, 0, 33), num_heads=1, run_length=2, config=SMALL),
    Shape((19, 5, 0, 70), 6, 2, run_length=5, lengths=(5, 3, 2, 1), config=PARTS_2),
    Shape((34, 8, 57, 12), 4, 1, 80, run_length=8, lengths=(8, 7, 2, 5), block_size=8, config=SMALL),
    Shape((60, 9), 8, run_length=5, lengths=(4, 5), config=PARTS_2),
    Shape((40, 7, 100), run_length=5, lengths=(5, 2, 4), window=20, config=SMALL),
    Shape((2, 19, 3), run_length=2, lengths=(2, 1, 2), first_position=1, config=SMALL),
    Shape((40, 8, 70), run_length=8, lengths=(8, 1, 6), window=3, config=SMALL),  # first and last token share no key
    Shape(
        (52, 36, 84, 51, 50, 68, 20, 100, 53), run_length=5, window=20, config=SMALL
    ),  # see a tile less at their ends
    Shape((130,), 4, 1, 128, run_length=5, dtype=FP16, config=SMALL),
    Shape((90, 3), 4, run_length=5, lengths=(5, 3), config=replace(PARTS_3, max_queries=8)),  # 2 + 2 + 1 tokens
    Shape((70, 33), 3, run_length=7, lengths=(7, 1), window=20, config=replace(PARTS_3, max_queries=16)),
    Shape((50, 20), run_length=5, lengths=(3, 5), block_size=32, kv_dtype=BF16, config=replace(SMALL, tile=64)),
    Shape((37, 64), run_length=5, lengths=(5, 3), dtype=FP16, kv_dtype=E5M2, k_scale=0.5, v_scale=3.0, config=SMALL),
    Shape((33, 0), 3, 1, 96, run_length=5, lengths=(2,), kv_dtype=E4M3, k_scale=0.25, v_scale=0.5, config=SMALL),
    Shape((20, 18, 35), 4, run_length=17, lengths=(8, 17, 2), config=SMALL),
]
LONG = (1, 17, 200, 5000)
RAGGED = (*(1 + 37 * i % 300 for i in range(62)), 4096)
COMPILED = [
    Shape((1,), 32, 8, 128, dtype=BF16),
    Shape((1088,), 32, 8, 128, dtype=BF16),
    Shape((9000,), 32, 8, 128, dtype=BF16),
    Shape((1088,) * 8, 32, 8, 128, dtype=BF16),
    Shape((63, 64, 65, 0, 127, 128, 129, 0), 32, 8, 128, dtype=BF16),
    Shape(RAGGED, 32, 8, 128, dtype=BF16),
    Shape((1, 0, 2) * 170, 32, 8, 128, dtype=BF16),
    Shape(LONG, 9, 3, 64, dtype=BF16),
    Shape(LONG, 4, 4, 96, block_size=8, dtype=BF16),
    Shape(LONG, 6, 2, 80, block_size=32, dtype=BF16),
    Shape(LONG, 16, 1, 256, dtype=BF16),
    Shape(LONG, 32, 8, 128, window=128, dtype=BF16),
    Shape(LONG, 16, 2, 128, block_size=64, window=1000, dtype=FP16),
    Shape(LONG, 32, 8, 128, dtype=BF16, kv_dtype=E4M3, k_scale=0.25, v_scale=2.0),
    Shape(LONG, 9, 3, 64, dtype=FP16, kv_dtype=E5M2, v_scale=0.5),
    Shape(LONG, 8, 2, 128, dtype=FP32),
    Shape(LONG, 32, 8, 128, first_position=1, dtype=BF16),
    Shape(LONG, 9, 3, 64, first_position=1, dtype=FP32),
    Shape(LONG, 32, 8, 128, first_position=1, dtype=BF16, kv_dtype=E4M3),
]
LONG_RUNS = (8, 17, 200, 5000)
COMPILED_RUNS = [
    Shape((5,), 32, 8, 128, run_length=5, dtype=BF16),
    Shape((1088,), 32, 8, 128, run_length=5, dtype=BF16),
    Shape((9000,), 32, 8, 128, run_length=8, lengths=(4,), dtype=BF16),
    Shape((1088,) * 8, 32, 8, 128, run_length=5, lengths=(1, 2, 5, 4), dtype=BF16),
    Shape((63, 64, 65, 0, 127, 128, 129, 0), 32, 8, 128, run_length=5, lengths=(5, 1, 2, 3), dtype=BF16),
    Shape((66, 67, 68, 0, 130, 131, 132, 0), 32, 8, 128, run_length=8, lengths=(8, 7), dtype=BF16),
    Shape((2, 0, 3) * 170, 32, 8, 128, run_length=2, lengths=(2, 1), dtype=BF16),
    Shape(LONG_RUNS, 9, 3, 64, run_length=8, lengths=(8, 1, 5), dtype=BF16),
    Shape(LONG_RUNS, 9, 3, 64, run_length=5, lengths=(5, 3, 2, 5), dtype=BF16),
    Shape(LONG_RUNS, 4, 4, 96, run_length=8, lengths=(8, 1, 5), block_size=8, dtype=BF16),
    Shape(LONG_RUNS, 6, 2, 80, run_length=5, lengths=(5, 3, 2, 5), block_size=32, dtype=BF16),
    Shape(LONG_RUNS, 16, 1, 256, run_length=5, lengths=(5, 4, 1), dtype=BF16),
    Shape(LONG_RUNS, 64, 8, 128, run_length=8, lengths=(8, 2, 7), dtype=BF16),
    Shape((100, 17, 200, 5000), 32, 8, 128, run_length=17, lengths=(17, 16, 9, 1), dtype=BF16),
    Shape(LONG_RUNS, 32, 8, 128, run_length=8, lengths=(8, 1, 5), window=128, dtype=BF16),
    Shape(LONG_RUNS, 16, 2, 128, run_length=5, lengths=(5, 1, 4), block_size=64, window=1000, dtype=FP16),
    Shape(LONG_RUNS, 32, 8, 128, run_length=5, lengths=(5, 3, 2, 5), dtype=BF16, kv_dtype=E4M3, k_scale=0.25),
    Shape(LONG_RUNS, 32, 8, 128, run_length=16, lengths=(8, 16, 5), dtype=BF16, kv_dtype=E4M3),
    Shape(LONG_RUNS, 9, 3, 64, run_length=8, lengths=(8, 1, 5), dtype=FP16, kv_dtype=E5M2, v_scale=0.5),
    Shape(LONG_RUNS, 8, 2, 128, run_length=8, lengths=(8, 1, 5), dtype=FP32),
    Shape(LONG_RUNS, 9, 3, 64, run_length=5, lengths=(5, 2), dtype=FP32),
    Shape(LONG_RUNS, 32, 8, 128, run_length=5, lengths=(5, 2), first_position=1, dtype=BF16),
]
looped = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
"""Triton 3.6 interprets loops over a tensor's value in a way that numpy warns of."""
without_numbers = pytest.mark.filterwarnings(
    *(f"ignore:{text}:RuntimeWarning" for text in ("invalid value", "divide by zero", "All-NaN slice"))
)
"""Numpy warns where a GPU does not: of NaN in what is masked, of the log of a sum of nothing."""
CONFIGS = [SMALL, DecodeConfig(tile=128, num_warps=8, num_stages=2, programs_per_sm=5, min_tiles=2)]


@pytest.mark.interpreter
@without_numbers
@looped
@pytest.mark.parametrize("shape", INTERPRETED + INTERPRETED_RUNS, ids=str)
def test_interpreted(shape):
    check_attention(shape, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", COMPILED + COMPILED_RUNS, ids=str)
def test_compiled(shape):
    check_attention(shape, "cuda")


def check_large_queries(device):
    """Beyond fp16, in which fp8 is multiplied."""
    step = Step(Shape((40,), dtype=BF16 if device == "cuda" else FP32, kv_dtype=E5M2, config=SMALL), device)
    step.q.mul_(2.0**40)
    step.scales["scale"] /= 2.0**40
    step.partition()
    assert relative_error(step.run(), step.reference()) < step.shape.tolerance


@pytest.mark.interpreter
@looped
def test_large_queries_interpreted():
    check_large_queries("cpu")


@pytest.mark.gpu
def test_large_queries_compiled():
    check_large_queries("cuda")


@pytest.mark.interpreter
@pytest.mark.parametrize(("batch", "window"), [(1, None), (7, None), (33, 100)])
@pytest.mark.parametrize("even", [False, True], ids=["ragged", "even"])
@pytest.mark.parametrize("run_length", [1, 5])
def test_partition_interpreted(batch, window, even, run_length):
    check_partition(batch, even, run_length, CONFIGS[1], window, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=["tile16", "tile128"])
@pytest.mark.parametrize(("batch", "window"), [(1, None), (7, None), (512, None), (33, 100)])
@pytest.mark.parametrize("even", [False, True], ids=["ragged", "even"])
@pytest.mark.parametrize("run_length", [1, 100])
def test_partition_compiled(batch, config, window, even, run_length):
    check_partition(batch, even, run_length, config, window, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [False, True], ids=["plain", "pdl"])
@pytest.mark.parametrize(("run_length", "lengths"), [(1, None), (5, (5, 3, 2, 4))], ids=["single", "runs"])
def test_graph_follows_lengths(pdl, run_length, lengths):
    """Captured once, replayed with other lengths and tables."""
    shape = Shape((2000, 0, 5, 300), 32, 8, 128, run_length=run_length, lengths=lengths, dtype=BF16)
    later = replace(shape, contexts=(5, 2000, 290, 0), lengths=lengths and lengths[::-1])
    step, other = Step(shape, "cuda"), Step(later, "cuda", seed=1)
    step.partition(), step.run(pdl=pdl)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.partition()
        step.out.fill_(math.nan)
        for _ in range(3):
            step.run(pdl=pdl)
    for name, tensor in step.inputs().items():
        tensor.copy_(other.inputs()[name])
    graph.replay()
    assert relative_error(step.out, other.reference()) < TOLERANCE[BF16]


AHEAD = [
    Shape((2000, 0, 1, 300, 65), 32, 8, 128, dtype=BF16),
    Shape((1,) * 5, 32, 8, 128, dtype=BF16),
    Shape(LONG, 6, 2, 80, block_size=64, window=100, dtype=BF16, config=SMALL),
    Shape(LONG, 32, 8, 128, dtype=BF16, config=DecodeConfig(64, 2, 3, 3, min_tiles=2)),
    Shape((2000, 0, 5, 300, 65), 32, 8, 128, run_length=5, lengths=(5, 4, 1), dtype=BF16),
]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", AHEAD, ids=str)
def test_programmatic_launch_sees_what_the_one_ahead_wrote(shape):
    step = Step(shape, "cuda")
    written, reference = step.kv.clone(), step.reference()
    step.partition(), step.run(pdl=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            step.kv.fill_(math.nan)
            torch.add(written, 0.0, out=step.kv)
            step.run(pdl=True)
    step.out.fill_(math.nan)
    graph.replay()
    assert relative_error(step.out, reference) < shape.tolerance


def shares(contexts, config):
    """Tiles of each part, on a reference of one KV head and four multiprocessors."""
    workspace = decode_workspace(len(contexts), 1, 1, 64, BF16, torch.device("cpu"), config=config)
    positions = torch.tensor(contexts, dtype=torch.int32) - 1
    rows = torch.where(positions < 0, -1, torch.arange(len(contexts))).int()
    ref_partition_decode(rows, positions, workspace=workspace)
    return workspace, (workspace.part_records[:, 1] - workspace.part_records[:, 0]).tolist()


def test_shares_are_even():
    workspace, tiles = shares([0, 1, 16, 17, 400], replace(SMALL, programs_per_sm=2))
    assert sum(tiles) == 1 + 1 + 1 + 2 + 25
    assert max(tiles) - min(tiles) == 1
    # Row 3 is what part 1 begins with, so its slot is 2; row 4 begins within part 1: slot 3.
    records = [[0, 1, -1, 0, 0, 0], [1, 2, 1, 1, 1, 0], [2, 3, 2, 16, 1, 0], [3, 5, 3, 17, 2, 1], [5, 30, 4, 400, 3, 7]]
    assert workspace.row_records[:5, :6].tolist() == records
    starts = [0, 3, 7, 11, 15, 18, 22, 26, 30]
    rows, num_rows = [0, 3, 4, 4, 4, 4, 4, 4], [3, 2, 1, 1, 1, 1, 1, 1]
    parts = [list(part) for part in zip(starts, starts[1:], rows, num_rows, strict=False)]
    assert workspace.part_records[:, :4].tolist() == parts
    assert workspace.part_records[:, ROW_OF_PART.value :][:, :6].tolist() == [records[row] for row in rows]


def test_rows_have_parts_of_their_own():
    workspace, tiles = shares([300, 0, 300], replace(SMALL, programs_per_sm=3))
    assert tiles == [3, 4, 4, 4, 4, 1, 3, 4, 4, 4, 4, 0]
    assert workspace.row_records[:3, 4:6].tolist() == [[0, 4], [10, 5], [12, 10]]
    assert workspace.part_records[:, 2].tolist() == [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3]
    # 45 tiles on 8 parts: one more than 6 is worth it.
    assert shares([400, 0, 300], replace(SMALL, programs_per_sm=2))[1] == [6, 6, 6, 7, 1, 6, 6, 7]


def test_few_tiles_fill_few_parts():
    assert shares([100], replace(SMALL, min_tiles=4))[1] == [3, 4, 0, 0]
    assert shares([1], SMALL)[1] == [1, 0, 0, 0]


def test_reference_is_softmax_attention():
    step = Step(Shape((0, 37), 4, 2, 64, block_size=8), "cpu")
    blocks = step.tables[step.rows[1], :5].long()
    k, v = step.kv[blocks].permute(2, 1, 0, 3, 4).reshape(2, 2, 40, 64)[:, :, :37].repeat_interleave(2, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(step.q[1, :, None], k, v)[:, 0]
    out = ref_paged_decode_attention(**step.inputs(), **step.scales)
    torch.testing.assert_close(out[1], expected, rtol=1e-5, atol=1e-5)
    assert not out[0].any()


@pytest.mark.parametrize("window", [None, 7])
def test_reference_of_a_run_is_its_tokens_one_by_one(window):
    step = Step(Shape((0, 37, 20), 4, 2, run_length=5, lengths=(5, 4, 5), block_size=8, window=window), "cpu")
    out = ref_paged_decode_attention(**step.inputs(), **step.scales, window=window)
    for i in range(5):
        exists = (step.rows >= 0) & (i < step.lengths)
        inputs = {**step.inputs(), "rows": torch.where(exists, step.rows, -1), "lengths": None}
        inputs |= {"q": step.q[:, i], "positions": step.positions + i}
        assert torch.equal(out[:, i], ref_paged_decode_attention(**inputs, **step.scales, window=window))
        assert not out[~exists, i].any()


@pytest.mark.parametrize("max_queries", [16, 32, 64])
@pytest.mark.parametrize("group", [1, 3, 16])
def test_programs_share_a_run(group, max_queries):
    """In a workspace for the longest, every run has room, and all of its tokens a program."""
    config = replace(SMALL, max_queries=max_queries, programs_per_sm=8)
    workspace = decode_workspace(2, group, 1, 64, BF16, torch.device("cpu"), run_length=33, config=config)
    for run_length in range(1, 34):
        split = workspace.split(run_length)
        assert (split.programs - 1) * split.tokens < run_length <= split.programs * split.tokens
        assert split.tokens * group <= max_queries
        assert split.programs * split.num_parts <= max(workspace.num_parts, split.programs)
        assert split.programs * split.tokens * group <= workspace.log_sums.shape[2]
        assert split.programs <= workspace.arrivals.shape[1]


@pytest.mark.parametrize("kv_dtype", [BF16, FP16, FP32, E4M3, E5M2], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_tiles_in_flight_fit_shared_memory(head_dim, kv_dtype):
    config = decode_config(head_dim, kv_dtype)
    padded_dim = 2 ** math.ceil(math.log2(head_dim))
    tile_bytes = 2 * config.tile * padded_dim * kv_dtype.itemsize
    assert config.tile >= 16
    assert config.programs_per_sm * ((config.num_stages - 1) * tile_bytes + 10_000) <= 227 * 1024
    if config.max_queries >= 64:  # a warp group's: queries lie there too, and a tile until its product is done
        query_bytes = config.max_queries * padded_dim * kv_dtype.itemsize
        assert config.programs_per_sm * (config.num_stages * tile_bytes + query_bytes + 2048) <= 228 * 1024


def test_refuses_what_it_does_not_take():
    step = Step(Shape((5, 9), window=3), "cpu")
    for error, change in {
        "window is None": {"window": None},
        "out is": {"out": step.out[:1]},
        "q is": {"q": step.q[:1]},
        "q is ": {"q": step.q.transpose(1, 2).contiguous().transpose(1, 2)},
        "not contiguous": {"kv_layer": step.kv.transpose(1, 3)},
        "kv_layer is": {"kv_layer": step.kv[..., :32].contiguous()},
        "block_tables is": {"block_tables": step.tables.long()},
        "rows is": {"rows": step.rows.long()},
        "positions is": {"positions": step.positions[:1]},
        "a batch of 4": {"rows": step.rows.repeat(2)},
        "runs of 2 tokens": {"q": step.q[:, None].expand(-1, 2, -1, -1)},
        "runs of 0 tokens": {"q": step.q[:, None].expand(-1, 2, -1, -1)[:, :0]},
        "lengths is": {"lengths": step.rows.long()},
    }.items():
        with pytest.raises(ValueError, match=error):
            step.run(**change)
    with pytest.raises(ValueError, match="window is 0"):
        decode_workspace(1, 2, 1, 64, BF16, torch.device("cpu"), window=0)
    with pytest.raises(ValueError, match="run_length is 0"):
        decode_workspace(1, 2, 1, 64, BF16, torch.device("cpu"), run_length=0)
    with pytest.raises(ValueError, match="3 query heads over 2"):
        decode_workspace(1, 3, 2, 64, BF16, torch.device("cpu"))
    wide = Step(Shape((5,), num_heads=17), "cpu")
    with pytest.raises(ValueError, match="17 query heads share"):
        wide.run()
