import pytest
import torch
from isthmus.kernels.dispatch import INTERPRETED
from isthmus.kernels.silu_mul import FEW_NUMBERS, MANY_NUMBERS, ref_silu_mul, silu_config, silu_mul

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Of ‖out − exact‖ / ‖exact‖: the exact one in fp64, of the same inputs."""
TRUNCATED = 8e-3
"""Of bf16 under the interpreter, which cuts instead of rounding."""


def exact_silu_mul(x):
    gate, up = x.double().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def distance(out, exact):
    return ((out.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def tolerance(dtype):
    return TRUNCATED if dtype == torch.bfloat16 and INTERPRETED else TOLERANCE[dtype]


def check_silu_mul(device, num_rows, size, dtype, *, gap=16, pdl=False):
    wide = torch.full((num_rows, 2 * size + gap), float("nan"), dtype=dtype, device=device)
    x = wide[:, : 2 * size].normal_(std=3)
    exact = exact_silu_mul(x)
    wide_out = torch.full((num_rows, size + gap), float("nan"), dtype=dtype, device=device)
    out = wide_out[:, :size]
    assert silu_mul(x, out, pdl=pdl) is out
    assert distance(out, exact) < tolerance(dtype)
    assert wide_out[:, size:].isnan().all()
    assert torch.equal(silu_mul(x), out)


def check_far_gates(device):
    """exp(−g) overflows on one side and vanishes on the other."""
    gate = torch.tensor([-200.0, -100.0, -88.0, -20.0, 0.0, 20.0, 88.0, 200.0]).repeat(2)[None]
    x = torch.cat((gate, torch.full_like(gate, 3)), dim=-1).to(device)
    out = silu_mul(x)
    assert torch.allclose(out.double(), exact_silu_mul(x), rtol=1e-5, atol=1e-30)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("num_rows", "size"), [(1, 16), (3, 528), (2, 512), (2, 1536), (0, 64)])
def test_kernel_under_the_interpreter(num_rows, size, dtype):
    check_silu_mul("cpu", num_rows, size, dtype)


@pytest.mark.interpreter
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_far_gates_under_the_interpreter():
    check_far_gates("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("num_rows", "size"), [(1, 14336), (73, 14336), (74, 14336), (500, 14336), (1, 1536), (999, 1536), (5, 16), (0, 64)]
)
def test_kernel_on_a_gpu(num_rows, size, dtype):
    check_silu_mul("cuda", num_rows, size, dtype)
    check_silu_mul("cuda", num_rows, size, dtype, pdl=True)


@pytest.mark.gpu
def test_far_gates_on_a_gpu():
    check_far_gates("cuda")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_reference_is_close_to_the_exact_one(dtype):
    x = torch.randn(7, 352).mul(3).to(dtype)
    assert distance(ref_silu_mul(x), exact_silu_mul(x)) < TOLERANCE[dtype]
    check_far_gates("cpu")


def test_small_work_is_spread_over_small_programs():
    assert silu_config(1, 14336) == FEW_NUMBERS
    assert silu_config(8192, 14336) == MANY_NUMBERS


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (torch.ones(2, 48), None),
        (torch.ones(32), None),
        (torch.ones(32, 32).T, None),
        (torch.ones(2, 64), torch.ones(2, 64)),
        (torch.ones(2, 64), torch.ones(2, 32).half()),
        (torch.ones(2, 64), torch.ones(32, 2).T),
    ],
    ids=["size", "dimensions", "columns", "shape of out", "dtype of out", "columns of out"],
)
def test_what_does_not_fit_is_refused(x, out):
    with pytest.raises(ValueError):
        silu_mul(x, out)
