import pytest
import torch
from isthmus.kernels.dispatch import INTERPRETED
from isthmus.kernels.rope_store import RopeConfig, ref_rope_store, rope_config, rope_store

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
TOLERANCE = {
    torch.float32: 2e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 5e-3,
    torch.float8_e4m3fn: 4e-2,
    torch.float8_e5m2: 8e-2,
}
"""Of ‖out − exact‖ / ‖exact‖, by the dtype of `out`; the exact one in fp64, of the same inputs."""
TRUNCATED = {torch.bfloat16: 8e-3, torch.float8_e4m3fn: 0.25, torch.float8_e5m2: 0.25}
"""Of the interpreter, which cuts bf16 instead of rounding, and loses fp8's carry into the exponent."""
NUM_BLOCKS, MAX_POSITIONS = 20, 96
EPS = 1e-6


def tolerance(dtype):
    return (TRUNCATED if INTERPRETED else {}).get(dtype, TOLERANCE[dtype])


def distance(out, exact):
    return ((out.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def exact_rotation(heads, weight, cos_sin):
    """fp64 [T, heads, head_dim] as complex numbers turned by [T, 2, head_dim / 2]."""
    if weight is not None:
        heads = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + EPS) * weight.double()
    a, b = heads.chunk(2, dim=-1)
    turned = torch.complex(a, b) * torch.complex(*cos_sin.double().unbind(1))[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def angles(head_dim, device):
    angle = torch.arange(MAX_POSITIONS)[:, None] / 100 ** torch.linspace(0, 1, head_dim // 2)
    return torch.stack((angle.cos(), angle.sin()), dim=1).to(device)


class Step:
    """Tokens of two rows of the table and padding between them, in a pool full of NaN. Blocks past a row's own are
    ids that no pool has."""

    def __init__(self, device, num_tokens, heads, head_dim, *, dtype, pool, block_size=16, norms=False):
        num_heads, num_kv_heads = heads
        rows = [(1, 2, -1)[t % 3] for t in range(num_tokens)]
        positions = [t // 3 + (5 if row == 1 else block_size - 1) if row >= 0 else 10**6 for t, row in enumerate(rows)]
        garbage = 2**30
        table = torch.full((3, MAX_POSITIONS // block_size + 1), garbage, dtype=torch.int32)
        num_used = max((p for p, row in zip(positions, rows, strict=True) if row >= 0), default=0) // block_size + 1
        ids = torch.randperm(NUM_BLOCKS - 1)[: 2 * num_used].view(2, num_used) + 1
        table[1:, :num_used] = ids
        self.rows, self.positions = rows, positions
        width = (num_heads + 2 * num_kv_heads) * head_dim
        wide = torch.full((num_tokens, width + 16), float("nan"), dtype=dtype, device=device)
        self.qkv = wide[:, :width]
        real = [t for t, row in enumerate(rows) if row >= 0]
        self.qkv[real] = torch.randn(len(real), width, device=device, dtype=dtype)
        shape = (NUM_BLOCKS, num_kv_heads, 2, block_size, head_dim)
        self.pool = torch.full(shape, float("nan"), device=device).to(pool)
        self.cos_sin = angles(head_dim, device)
        self.q_norm = torch.rand(head_dim, device=device).add(0.5).to(dtype) if norms else None
        self.k_norm = torch.rand(head_dim, device=device).add(0.5).to(dtype) if norms else None
        self.metadata = [table, torch.tensor(rows, dtype=torch.int32), torch.tensor(positions, dtype=torch.int32)]
        self.table, self.num_heads, self.num_kv_heads, self.real = table, num_heads, num_kv_heads, real

    def run(self, **options):
        device = self.qkv.device
        table, rows, positions = (tensor.to(device) for tensor in self.metadata)
        options |= {"num_heads": self.num_heads, "q_norm": self.q_norm, "k_norm": self.k_norm, "eps": EPS}
        return rope_store(self.qkv, self.pool, table, rows, positions, self.cos_sin, **options)

    def exact(self):
        """q, k, v of the real tokens in fp64."""
        head_dim = self.pool.shape[-1]
        heads = self.qkv[self.real].double().view(len(self.real), -1, head_dim)
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        cos_sin = self.cos_sin[[self.positions[t] for t in self.real]]
        return exact_rotation(q, self.q_norm, cos_sin), exact_rotation(k, self.k_norm, cos_sin), v

    def take_stored(self):
        """K and V of the real tokens as the pool holds them, each [T, num_kv_heads, head_dim], leaving NaN there."""
        pool, taken = self.pool.float().cpu(), []
        for t in self.real:
            block, offset = divmod(self.positions[t], pool.shape[3])
            slot = pool[self.table[self.rows[t], block], :, :, offset]
            taken.append(slot.clone())
            slot.fill_(float("nan"))
        self.left = pool
        return torch.stack(taken).to(self.pool.device).unbind(2)


def check_rope_store(device, num_tokens, heads, head_dim, *, dtype, pool, scales=(1.0, 1.0), **options):
    config = options.pop("config", None)
    step = Step(device, num_tokens, heads, head_dim, dtype=dtype, pool=pool, **options)
    wide = torch.full((num_tokens, heads[0] + 1, head_dim), float("nan"), dtype=dtype, device=device)
    q = wide[:, : heads[0]]
    assert step.run(q_out=q, k_scale=scales[0], v_scale=scales[1], config=config) is q
    assert wide[:, heads[0] :].isnan().all()
    padding = [t for t, row in enumerate(step.rows) if row < 0]
    assert (q[padding] == 0).all()
    if step.real:
        exact_q, exact_k, exact_v = step.exact()
        keys, values = step.take_stored()
        assert distance(q[step.real], exact_q) < tolerance(dtype)
        assert distance(keys * scales[0], exact_k) < tolerance(pool)
        assert distance(values * scales[1], exact_v) < tolerance(pool)
        assert step.left.isnan().all()


HEADS = [
    pytest.param(4, (9, 3), 64, 16, id="SmolLM2"),
    pytest.param(1, (4, 1), 128, 8, id="one token"),
    pytest.param(5, (2, 2), 80, 64, id="head_dim 80"),
    pytest.param(3, (3, 1), 96, 32, id="head_dim 96"),
    pytest.param(2, (1, 1), 256, 16, id="head_dim 256"),
    pytest.param(0, (2, 1), 64, 16, id="no token"),
]
POOLS = [
    pytest.param(torch.float32, torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, torch.bfloat16, id="bf16"),
    pytest.param(torch.float16, torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, torch.float8_e4m3fn, id="e4m3"),
    pytest.param(torch.bfloat16, torch.float8_e5m2, id="e5m2"),
]


@pytest.mark.interpreter
@pytest.mark.parametrize("norms", [False, True], ids=["plain", "norms"])
@pytest.mark.parametrize(("num_tokens", "heads", "head_dim", "block_size"), HEADS)
def test_kernel_under_the_interpreter(num_tokens, heads, head_dim, block_size, norms):
    options = {"block_size": block_size, "norms": norms}
    check_rope_store("cpu", num_tokens, heads, head_dim, dtype=torch.float32, pool=torch.float32, **options)


@pytest.mark.interpreter
@pytest.mark.parametrize(("dtype", "pool"), POOLS)
def test_dtypes_under_the_interpreter(dtype, pool):
    scales = (0.5, 0.25) if pool in FP8 else (1.0, 1.0)
    check_rope_store("cpu", 4, (4, 2), 64, dtype=dtype, pool=pool, scales=scales)


@pytest.mark.gpu
@pytest.mark.parametrize("norms", [False, True], ids=["plain", "norms"])
@pytest.mark.parametrize(("dtype", "pool"), POOLS)
@pytest.mark.parametrize("num_tokens", [1, 200])
def test_kernel_on_a_gpu(num_tokens, dtype, pool, norms):
    scales = (0.5, 0.25) if pool in FP8 else (1.0, 1.0)
    check_rope_store("cuda", num_tokens, (32, 8), 128, dtype=dtype, pool=pool, scales=scales, norms=norms)


@pytest.mark.gpu
@pytest.mark.parametrize("pool", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(("num_tokens", "heads", "head_dim", "block_size"), HEADS)
def test_shapes_on_a_gpu(num_tokens, heads, head_dim, block_size, pool):
    options = {"block_size": block_size, "norms": True, "pool": pool}
    check_rope_store("cuda", num_tokens, heads, head_dim, dtype=torch.bfloat16, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("config", [RopeConfig(8, 2), RopeConfig(16, 4), RopeConfig(64, 8)], ids=str)
def test_configurations_on_a_gpu(config):
    check_rope_store("cuda", 100, (32, 8), 128, dtype=torch.bfloat16, pool=torch.bfloat16, config=config)


def check_saturation(device, nan):
    """What fp8 cannot hold becomes its largest number; `nan` stays."""
    for dtype in FP8:
        pool = torch.zeros(1, 1, 2, 8, 16, device=device).to(dtype)
        value = torch.tensor([1e6, -1e6, nan, 1.0] * 4, device=device)
        qkv = torch.cat((torch.zeros(32, device=device), value))[None]
        zero = torch.zeros(1, 1, dtype=torch.int32, device=device)
        cos_sin = torch.tensor([1.0, 0.0], device=device)[None, :, None].expand(1, 2, 8).contiguous()
        rope_store(qkv, pool, zero, zero[0], zero[0], cos_sin, num_heads=1, v_scale=0.5)
        largest = torch.finfo(dtype).max
        expected = torch.tensor([largest, -largest, nan / 0.5, 2.0] * 4)
        assert torch.equal(pool[0, 0, 1, 0].float().cpu().nan_to_num(7), expected.nan_to_num(7))


def test_saturation_of_the_reference():
    check_saturation("cpu", float("nan"))


@pytest.mark.interpreter
def test_saturation_under_the_interpreter():
    """The interpreter makes a number of an fp8 NaN."""
    check_saturation("cpu", 0.5)


@pytest.mark.gpu
def test_saturation_on_a_gpu():
    check_saturation("cuda", float("nan"))


@pytest.mark.gpu
def test_a_captured_launch_follows_its_metadata():
    step = Step("cuda", 30, (32, 8), 128, dtype=torch.bfloat16, pool=torch.bfloat16)
    table, rows, positions = (tensor.cuda() for tensor in step.metadata)
    q, other = torch.empty(2, 30, 32, 128, dtype=torch.bfloat16, device="cuda")
    arguments = (step.qkv, step.pool, table, rows, positions, step.cos_sin)
    rope_store(*arguments, num_heads=32, q_out=q, pdl=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rope_store(*arguments, num_heads=32, q_out=q, pdl=True)
    rows.fill_(-1)
    step.pool.zero_()
    graph.replay()
    assert q.abs().max() == step.pool.abs().max() == 0
    rows.copy_(step.metadata[1])
    positions.add_(1)
    graph.replay()
    first = step.pool.clone()
    step.pool.zero_()
    rope_store(*arguments, num_heads=32, q_out=other)
    assert torch.equal(q, other)
    assert torch.equal(first, step.pool)


@pytest.mark.parametrize(("dtype", "pool"), POOLS)
@pytest.mark.parametrize("norms", [False, True], ids=["plain", "norms"])
def test_the_reference_is_close_to_the_exact_one(dtype, pool, norms):
    scales = (0.5, 0.25) if pool in FP8 else (1.0, 1.0)
    check_rope_store("cpu", 20, (6, 2), 80, dtype=dtype, pool=pool, scales=scales, norms=norms, block_size=8)


def test_the_wrapper_on_a_cpu_gives_what_the_reference_gives():
    step, other = (Step("cpu", 6, (4, 2), 64, dtype=torch.float32, pool=torch.float32) for _ in range(2))
    other.qkv, other.metadata, other.pool = step.qkv, step.metadata, step.pool.clone()
    table, rows, positions = step.metadata
    expected = ref_rope_store(other.qkv, other.pool, table, rows, positions, other.cos_sin, num_heads=4)
    assert torch.allclose(step.run(), expected, atol=1e-6)
    assert torch.allclose(step.pool, other.pool, atol=1e-6, equal_nan=True)


def test_a_thread_gets_sixteen_bytes():
    assert rope_config(1, 128) == RopeConfig(8, 2)
    assert rope_config(8192, 128) == RopeConfig(16, 4)
    assert rope_config(1, 64) == RopeConfig(8, 1)
    assert rope_config(8192, 80) == rope_config(8192, 128)


def good():
    return {
        "qkv": torch.zeros(2, 128),
        "kv_layer": torch.zeros(3, 2, 2, 16, 16),
        "block_tables": torch.zeros(1, 4, dtype=torch.int32),
        "rows": torch.zeros(2, dtype=torch.int32),
        "positions": torch.arange(2, dtype=torch.int32),
        "cos_sin": torch.zeros(4, 2, 8),
        "num_heads": 4,
    }


def test_what_fits_is_taken():
    assert rope_store(**good()).shape == (2, 4, 16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"qkv": torch.zeros(2, 112)},
        {"qkv": torch.zeros(128, 2).T},
        {"kv_layer": torch.zeros(3, 2, 16, 2, 16).transpose(2, 3)},
        {"kv_layer": torch.zeros(3, 2, 16, 16)},
        {"rows": torch.zeros(2, dtype=torch.int64)},
        {"positions": torch.zeros(3, dtype=torch.int32)},
        {"block_tables": torch.zeros(1, 4, dtype=torch.int64)},
        {"block_tables": torch.zeros(4, 4, dtype=torch.int32).T},
        {"cos_sin": torch.zeros(4, 2, 8).half()},
        {"cos_sin": torch.zeros(4, 8, 2)},
        {"q_norm": torch.ones(8)},
        {"k_norm": torch.ones(32)[::2]},
        {"k_scale": 2.0},
        {"q_out": torch.zeros(2, 4, 16).half()},
        {"q_out": torch.zeros(4, 2, 16).transpose(0, 1)},
        {"num_heads": 3},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError):
        rope_store(**{**good(), **wrong})
