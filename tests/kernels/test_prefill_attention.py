import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from isthmus.kernels import prefill_attention as ours
from isthmus.kernels import vendor_attention
from isthmus.kernels.prefill_attention import (
    Batch,
    Tile,
    launch_attention,
    prefill_attention,
    ref_prefill_attention,
)
from isthmus.kernels.vendor_attention import Run, cudnn_accepts, cudnn_attention, gather_kv, merge_attention

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")  # Triton 3.6
TOLERANCE = {BF16: 4e-3, FP16: 6e-4, FP32: 3e-6}
"""Of ‖out − ref‖ / ‖ref‖ by the dtype of q, to which weights and output are rounded."""


@dataclass(frozen=True)
class Shape:
    runs: tuple[tuple[int, int], ...]
    """(tokens, prefix) of each."""
    heads: tuple[int, int] = (4, 1)
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    dtype: torch.dtype = FP16
    kv_dtype: torch.dtype | None = None
    k_scale: float = 1.0
    v_scale: float = 1.0
    padding: int = 3

    def __str__(self):
        names = [str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.kv_dtype) if dtype]
        parts = ["-".join(f"{tokens}after{prefix}" for tokens, prefix in self.runs)]
        parts += [f"{self.heads[0]}on{self.heads[1]}x{self.head_dim}", f"block{self.block_size}", *names]
        return "_".join(parts + [f"window{self.window}"] * bool(self.window))


class Step:
    """Random tokens and KV in shuffled blocks. NaN in every slot that no token of the step sees, in the queries of
    padding and in the output; garbage in every entry of a table that holds no block to be read."""

    def __init__(self, shape, device, seed=0):
        generator = torch.Generator(device).manual_seed(seed)
        self.shape, self.device = shape, device
        (num_heads, num_kv_heads), size = shape.heads, shape.block_size
        counts = [math.ceil((tokens + prefix) / size) for tokens, prefix in shape.runs]
        free = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(seed)).tolist()
        kv = torch.full((len(free), num_kv_heads, 2, size, shape.head_dim), math.nan, device=device)
        tables = torch.full((len(counts) + 1, max(counts, default=0) + 2), 2**31 - 1, dtype=torch.int32)
        rows, positions, self.runs = [], [], []
        for row, ((tokens, prefix), count) in enumerate(zip(shape.runs, counts, strict=True), start=1):
            self.runs.append(Run(len(rows), tokens, prefix))
            rows += [row] * tokens
            positions += range(prefix, prefix + tokens)
            first_key = max(0, prefix - shape.window + 1) if shape.window else 0
            blocks = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
            tables[row, first_key // size : count] = blocks[first_key // size :]
            keys = torch.arange(first_key, prefix + tokens)
            random = torch.randn(len(keys), num_kv_heads, 2, shape.head_dim, device=device, generator=generator)
            kv[blocks[keys // size].to(device), :, :, (keys % size).to(device)] = random
        total = len(rows) + shape.padding
        # q and out are slices of wider rows: of a fused projection, say.
        wide = (total, num_heads + 1, shape.head_dim)
        q = torch.randn(wide, device=device, generator=generator)
        q[len(rows) :] = math.nan
        self.wide_out = torch.full(wide, math.nan, device=device, dtype=shape.dtype)
        self.out = self.wide_out[:, 1:]
        starts = [run.first_token for run in self.runs] + [len(rows)]
        self.batch = Batch(
            q=q.to(shape.dtype)[:, 1:],
            kv_layer=kv.to(shape.kv_dtype or shape.dtype),
            block_tables=tables.to(device),
            rows=torch.tensor(rows + [-1] * shape.padding, dtype=torch.int32, device=device),
            positions=torch.tensor(positions + [2**30] * shape.padding, dtype=torch.int32, device=device),
            row_starts=torch.tensor(starts, dtype=torch.int32, device=device),
            scale=shape.head_dim**-0.5,
            window=shape.window,
            k_scale=shape.k_scale,
            v_scale=shape.v_scale,
        )

    @property
    def num_tokens(self):
        return len(self.batch.q) - self.shape.padding

    def attend(self, **changes):
        """`prefill_attention` of this step, into `self.out` unless told otherwise."""
        operands = {name: getattr(self.batch, name) for name in Batch.__slots__} | {"out": self.out}
        bounds = {
            "max_row_tokens": max(tokens for tokens, _ in self.shape.runs),
            "max_context": max(tokens + prefix for tokens, prefix in self.shape.runs),
        }
        return prefill_attention(**operands | bounds | changes)

    def check(self, out, tolerance):
        ref = ref_prefill_attention(self.batch)
        assert not ref.isnan().any()
        assert error(out, ref) < tolerance
        assert not out[self.num_tokens :].any()  # a NaN would be truthy


def error(out, ref):
    return ((out.double() - ref.double()).norm() / ref.double().norm()).item()


def check_kernel(shape, device, tile=None):
    step = Step(shape, device)
    if tile is None:
        assert step.attend() is step.out
    else:
        launch_attention(step.batch, step.out, tile, range(len(step.runs)), range(len(step.batch.q)))
    step.check(step.out, TOLERANCE[shape.dtype])
    assert step.wide_out[:, 0].isnan().all()


def check_gather(shape, device):
    step = Step(shape, device)
    batch, run = step.batch, step.runs[-1]
    num_keys = run.start + run.num_tokens
    kv = gather_kv(
        batch.kv_layer,
        batch.block_tables,
        batch.rows,
        run,
        num_keys + 5,
        dtype=shape.dtype,
        k_scale=shape.k_scale,
        v_scale=shape.v_scale,
    )
    keys = torch.arange(num_keys, device=device)
    blocks = batch.block_tables[len(step.runs)][keys // shape.block_size].long()
    scales = torch.tensor([shape.k_scale, shape.v_scale], device=device)[:, None, None, None]
    expected = batch.kv_layer.float()[blocks, :, :, keys % shape.block_size].permute(2, 0, 1, 3) * scales
    assert torch.equal(kv[:, :num_keys], expected.to(shape.dtype))
    assert not kv[:, num_keys:].any()


def check_merge(num_tokens, num_heads, head_dim, dtype, device):
    """Against attention over both sets at once: weights exp(lse) of the parts."""
    a, b = torch.randn(2, num_tokens, num_heads, head_dim, device=device).to(dtype)
    lse = torch.randn(2, num_heads, num_tokens + 3, device=device) * 4
    lse[1, 0, 0] = -math.inf
    shares = lse.double()[:, :, 2 : num_tokens + 2].softmax(0).mT[..., None]
    expected = a.double() * shares[0] + b.double() * shares[1]
    a_lse, b_lse = lse[:, :, 2:]
    assert merge_attention(a, a_lse, b, b_lse, out=a) is a
    assert error(a, expected) < TOLERANCE[dtype]


def plain_attention(q, k, v, scale, *, causal, with_lse):
    """What cuDNN is asked for, in plain PyTorch."""
    assert q.shape[0] % vendor_attention.QUERY_STEP == 0
    assert causal or k.shape[0] % vendor_attention.PREFIX_STEP == 0
    k, v = (tensor.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -math.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return out.to(q.dtype).contiguous(), scores.logsumexp(-1) if with_lse else scores.new_empty(0)


INTERPRETED = [
    Shape(((1, 0),)),
    Shape(((17, 33), (1, 16), (0, 0), (1, 15), (40, 5)), heads=(4, 2)),
    Shape(((15, 0), (16, 16), (17, 31)), heads=(3, 1), padding=0),
    Shape(((20, 70),), heads=(3, 1), head_dim=80, dtype=FP32, block_size=8),
    Shape(((21, 43), (0, 7)), heads=(2, 1), head_dim=96, block_size=64),
    Shape(((20, 70), (5, 0)), window=13),
    Shape(((9, 130),), window=64, dtype=FP32),
    Shape(((70, 1),), window=1, heads=(1, 1)),
    Shape(((12, 21),), kv_dtype=E4M3, k_scale=0.5, v_scale=3.0),
    Shape(((12, 21),), kv_dtype=E5M2, k_scale=2.0, v_scale=0.25, dtype=FP32),
    Shape(((12, 21),), kv_dtype=FP32),
]


@pytest.mark.interpreter
@pytest.mark.parametrize("shape", INTERPRETED, ids=str)
def test_kernel_interpreted(shape):
    check_kernel(shape, "cpu")


@pytest.mark.interpreter
@pytest.mark.parametrize("tile", [Tile(16, 16, 4, 1), Tile(64, 16, 4, 1), Tile(128, 32, 8, 1)], ids=str)
def test_tiles_interpreted(tile):
    check_kernel(Shape(((33, 14), (2, 60), (0, 3), (48, 0)), heads=(3, 1)), "cpu", tile)


@pytest.mark.interpreter
@pytest.mark.parametrize("kv_dtype", [FP16, E4M3], ids=str)
def test_gather_interpreted(kv_dtype):
    check_gather(Shape(((3, 0), (18, 52)), kv_dtype=kv_dtype, heads=(4, 2), head_dim=80, v_scale=0.5), "cpu")


@pytest.mark.interpreter
def test_merge_interpreted():
    check_merge(13, 3, 80, FP16, "cpu")


@pytest.mark.interpreter
@pytest.mark.parametrize("prefix", [0, 5, 32, 45], ids="prefix{}".format)
@pytest.mark.parametrize("num_tokens", [16, 27], ids="tokens{}".format)
def test_cudnn_is_asked_for_the_right_parts(monkeypatch, num_tokens, prefix):
    monkeypatch.setattr(vendor_attention, "PREFIX_STEP", 32)
    monkeypatch.setattr(vendor_attention, "QUERY_STEP", 8)
    monkeypatch.setattr(vendor_attention, "_cudnn", plain_attention)
    step = Step(Shape(((2, 3), (num_tokens, prefix)), heads=(4, 2), padding=0), "cpu")
    batch, run = step.batch, step.runs[1]
    out = cudnn_attention(batch.q, batch.kv_layer, batch.block_tables, batch.rows, run, batch.scale)
    assert error(out, ref_prefill_attention(batch)[run.first_token :]) < 2 * TOLERANCE[FP16]


@pytest.mark.interpreter
def test_long_runs_are_attended_apart(monkeypatch):
    monkeypatch.setattr(vendor_attention, "PREFIX_STEP", 32)
    monkeypatch.setattr(vendor_attention, "QUERY_STEP", 8)
    monkeypatch.setattr(vendor_attention, "_cudnn", plain_attention)
    monkeypatch.setattr(ours, "goes_to_vendor", lambda batch, run: run.num_tokens > 10)
    for runs in (((2, 3), (16, 40), (11, 0), (5, 9), (3, 30), (20, 7)), ((14, 35),)):
        step = Step(Shape(runs, heads=(2, 1)), "cpu")
        step.attend(runs=step.runs)
        step.check(step.out, 2 * TOLERANCE[FP16])
        assert step.wide_out[:, 0].isnan().all()


def test_reference_is_attention():
    step = Step(Shape(((70, 300),), dtype=FP32, padding=0), "cpu")
    keys = torch.arange(370)
    kv = step.batch.kv_layer[step.batch.block_tables[1][keys // 16].long(), :, :, keys % 16].double()
    k, v = kv.permute(2, 1, 0, 3)
    mask = keys <= keys[300:, None]
    expected = F.scaled_dot_product_attention(step.batch.q.double().transpose(0, 1), k, v, attn_mask=mask)
    assert error(step.attend(), expected.transpose(0, 1)) < 1e-6


def test_window_of_the_whole_context_is_none():
    step = Step(Shape(((20, 30),), dtype=FP32), "cpu")
    assert torch.equal(step.attend(window=50).clone(), step.attend(window=None))


def test_no_tokens():
    step = Step(Shape(((0, 4),), padding=0), "cpu")
    assert step.attend().shape == (0, 4, 64)


BAD = {
    "q_dtype": lambda b: {"q": b.q.double(), "out": None},
    "q_strided": lambda b: {"q": b.q.transpose(1, 2).contiguous().transpose(1, 2), "out": None},
    "kv_strided": lambda b: {"kv_layer": b.kv_layer.mT},
    "kv_head_dim": lambda b: {"kv_layer": b.kv_layer[..., :32].contiguous()},
    "block_size": lambda b: {"kv_layer": b.kv_layer[:, :, :, :12].contiguous()},
    "out_shape": lambda b: {"out": torch.empty_like(b.q[1:])},
    "out_dtype": lambda b: {"out": b.q.float()},
    "scale": lambda b: {"scale": 0.0},
    "window": lambda b: {"window": 0},
    "rows_length": lambda b: {"rows": b.rows[1:]},
    "runs_length": lambda b: {"runs": []},
    "tables_int64": lambda b: {"block_tables": b.block_tables.long()},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_operands_raise(name):
    step = Step(Shape(((20, 30),)), "cpu")
    with pytest.raises(ValueError):
        step.attend(**BAD[name](step.batch))


RAGGED = ((1, 0), (17, 1000), (0, 5), (300, 77), (1, 4095), (513, 0), (128, 128))
COMPILED = [
    *(Shape(RAGGED, heads=(32, 8), head_dim=128, dtype=dtype) for dtype in (BF16, FP16, FP32)),
    Shape(RAGGED, heads=(32, 8), head_dim=128, dtype=BF16, kv_dtype=E4M3, k_scale=0.5),
    Shape(RAGGED, heads=(32, 8), head_dim=128, dtype=BF16, window=100),
    Shape(RAGGED, heads=(9, 3), head_dim=64, dtype=BF16, block_size=8),
    Shape(RAGGED, heads=(6, 2), head_dim=80, dtype=BF16, block_size=64),
    Shape(RAGGED, heads=(8, 4), head_dim=256, dtype=BF16),
    Shape(((1, 7), (2, 3), (4, 1000)), heads=(32, 8), head_dim=128, dtype=BF16),
    Shape(((12, 7), (1, 900)), heads=(32, 8), head_dim=128, dtype=BF16),
]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", COMPILED, ids=str)
def test_kernel_compiled(shape):
    check_kernel(shape, "cuda")


@pytest.mark.gpu
def test_gather_and_merge_compiled():
    check_gather(
        Shape(((3, 0), (700, 1333)), kv_dtype=E4M3, heads=(32, 8), head_dim=128, dtype=BF16, k_scale=0.5), "cuda"
    )
    check_merge(1000, 32, 128, BF16, "cuda")


def sdpa(step):
    """PyTorch's own bf16 attention over the one sequence of a step, its prefix's queries included."""
    run = step.runs[0]
    kv = gather_kv(
        step.batch.kv_layer,
        step.batch.block_tables,
        step.batch.rows,
        run,
        run.start + run.num_tokens,
        dtype=step.shape.dtype,
    )
    k, v = kv.transpose(1, 2)
    q = F.pad(step.batch.q, (0, 0, 0, 0, run.start, 0)).transpose(0, 1)[None]
    out = F.scaled_dot_product_attention(q, k[None], v[None], is_causal=True, enable_gqa=True)
    return out[0].transpose(0, 1)[run.start :]


@pytest.mark.gpu
@pytest.mark.parametrize("run", [(2048, 0), (1100, 0), (1024, 4096), (1500, 3001)], ids=str)
def test_error_is_that_of_a_16_bit_attention(run, monkeypatch):
    """Merging rounds once more than one pass over all keys does: √2 of its error."""
    monkeypatch.setattr(ours, "VENDOR_MIN_TOKENS", 1024)
    step = Step(Shape((run,), heads=(32, 8), head_dim=128, dtype=BF16, padding=0), "cuda")
    ref = ref_prefill_attention(step.batch)
    allowed = error(sdpa(step), ref)
    assert error(step.attend(), ref) < 1.1 * allowed
    if cudnn_accepts(step.batch.q):
        step.out.fill_(math.nan)
        assert error(step.attend(runs=step.runs), ref) < (1.5 if run[1] else 1.1) * allowed
        assert error(step.attend(runs=step.runs, out=None), ref) < (1.5 if run[1] else 1.1) * allowed


@pytest.mark.gpu
@pytest.mark.parametrize("kv_dtype", [BF16, E4M3], ids=str)
def test_long_runs_among_short_ones(kv_dtype, monkeypatch):
    monkeypatch.setattr(ours, "VENDOR_MIN_TOKENS", 1024)
    runs = ((1, 50), (1024, 0), (7, 3), (1400, 2100), (2, 0))
    step = Step(Shape(runs, heads=(32, 8), head_dim=128, dtype=BF16, kv_dtype=kv_dtype, v_scale=0.5), "cuda")
    step.attend(runs=step.runs)
    step.check(step.out, 1.5 * TOLERANCE[BF16])
    assert step.wide_out[:, 0].isnan().all()


@pytest.mark.gpu
def test_captured_in_a_graph():
    shape = Shape(((3, 40), (60, 9)), heads=(32, 8), head_dim=128, dtype=BF16)
    step = Step(shape, "cuda")
    step.attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.attend()
    other = Step(replace(shape, runs=((60, 9), (3, 40))), "cuda", seed=1)
    for name in ("q", "block_tables", "rows", "positions", "row_starts"):
        getattr(step.batch, name).copy_(getattr(other.batch, name))
    step.batch.kv_layer.copy_(other.batch.kv_layer)
    step.out.fill_(math.nan)
    graph.replay()
    step.check(step.out, TOLERANCE[BF16])
