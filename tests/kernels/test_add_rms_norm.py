import pytest
import torch
from isthmus.kernels.add_rms_norm import NormConfig, add_rms_norm, norm_config, ref_add_rms_norm, ref_rms_norm, rms_norm
from isthmus.kernels.dispatch import INTERPRETED

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Of ‖out − exact‖ / ‖exact‖: the exact one in fp64, of the same inputs."""
TRUNCATED = 8e-3
"""Of bf16 under the interpreter, which cuts instead of rounding."""
EPS = 1e-5


def exact_norm(x, weight):
    wide = x.double()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * weight.double()


def distance(out, exact):
    return ((out.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def tolerance(dtype):
    return TRUNCATED if dtype == torch.bfloat16 and INTERPRETED else TOLERANCE[dtype]


def rows_of(num_rows, size, dtype, device, *, gap=0):
    """Random rows, `gap` numbers apart; the gaps hold NaN."""
    wide = torch.full((num_rows, size + gap), float("nan"), dtype=dtype, device=device)
    wide[:, :size].normal_(std=3)
    return wide[:, :size]


def check_rms_norm(device, num_rows, size, dtype, *, gap):
    x, weight = rows_of(num_rows, size, dtype, device, gap=gap), rows_of(1, size, dtype, device)[0]
    before, exact = x.clone(), exact_norm(x, weight)
    out = torch.full((num_rows, size), float("nan"), dtype=dtype, device=device)
    assert rms_norm(x, weight, EPS, out) is out
    assert distance(out, exact) < tolerance(dtype)
    assert torch.equal(x, before)
    assert torch.equal(rms_norm(x, weight, EPS), out)


def check_add_rms_norm(device, num_rows, size, dtype, *, gap, in_place):
    x, weight = rows_of(num_rows, size, dtype, device, gap=gap), rows_of(1, size, dtype, device)[0]
    wide = torch.full((num_rows, size + 16), float("nan"), dtype=dtype, device=device)
    residual = wide[:, :size].normal_(std=3)
    total = (x.float() + residual.float()).to(dtype)
    out = x if in_place else None
    normed = add_rms_norm(x, residual, weight, EPS, out)
    if not INTERPRETED or dtype != torch.bfloat16:
        assert torch.equal(residual, total)
    assert distance(residual, total.double()) < tolerance(dtype)
    assert wide[:, size:].isnan().all()
    assert distance(normed, exact_norm(residual, weight)) < tolerance(dtype)
    assert (normed is x) == in_place


SMALL = [(1, 16), (3, 576), (2, 80), (5, 1024), (0, 64)]


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("num_rows", "size"), SMALL)
def test_kernels_under_the_interpreter(num_rows, size, dtype):
    check_rms_norm("cpu", num_rows, size, dtype, gap=16)
    check_add_rms_norm("cpu", num_rows, size, dtype, gap=32, in_place=num_rows == 3)


LARGE = [(1, 4096), (64, 4096), (513, 4096), (2048, 4096), (1, 576), (700, 576), (3, 5120), (600, 8192), (0, 64)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("num_rows", "size"), LARGE)
def test_kernels_on_a_gpu(num_rows, size, dtype):
    check_rms_norm("cuda", num_rows, size, dtype, gap=16)
    check_add_rms_norm("cuda", num_rows, size, dtype, gap=32, in_place=num_rows == 64)


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [False, True], ids=["plain", "pdl"])
def test_launches_in_a_row_see_each_other_in_a_graph(pdl):
    """Many times over: x becomes its norm, added to the residual."""
    x, residual = rows_of(9, 4096, torch.bfloat16, "cuda"), torch.zeros(9, 4096, dtype=torch.bfloat16, device="cuda")
    weight = torch.ones(4096, dtype=torch.bfloat16, device="cuda")
    expected_x, expected_residual = x.clone(), residual.clone()
    for _ in range(51):
        expected_x = add_rms_norm(expected_x, expected_residual, weight, EPS)
    first_x = x.clone()
    add_rms_norm(first_x, residual.clone(), weight, EPS, pdl=pdl)  # compiled before it is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(51):
            add_rms_norm(x, residual, weight, EPS, x, pdl=pdl)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(residual, expected_residual)
    assert torch.equal(x, expected_x)


@pytest.mark.gpu
def test_addresses_pass_two_to_the_31():
    x = torch.zeros(33_000, 65_536 + 64, dtype=torch.bfloat16, device="cuda")[:, :64]
    x[-1] = 2
    out = rms_norm(x, torch.ones(64, dtype=torch.bfloat16, device="cuda"), EPS)
    assert out[:-1].abs().max() == 0
    assert torch.equal(out[-1], torch.ones_like(out[-1]))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_references_are_close_to_the_exact_ones(dtype):
    x, weight = rows_of(7, 176, dtype, "cpu"), rows_of(1, 176, dtype, "cpu")[0]
    assert distance(ref_rms_norm(x, weight, EPS), exact_norm(x, weight)) < TOLERANCE[dtype]
    residual = rows_of(7, 176, dtype, "cpu")
    total = x + residual
    assert torch.equal(ref_add_rms_norm(x, residual, weight, EPS), ref_rms_norm(total, weight, EPS))
    assert torch.equal(residual, total)


def test_few_rows_are_spread_over_more_warps_than_many():
    assert norm_config(1, 4096) == NormConfig(16)
    assert norm_config(8192, 4096) == NormConfig(4)
    assert norm_config(1, 16) == norm_config(8192, 576) == NormConfig(1)


@pytest.mark.parametrize(
    ("x", "weight", "out"),
    [
        (torch.ones(2, 24), torch.ones(24), None),
        (torch.ones(2, 2, 16), torch.ones(16), None),
        (torch.ones(16, 32).T, torch.ones(16), None),
        (torch.ones(2, 32), torch.ones(16), None),
        (torch.ones(2, 32), torch.ones(64)[::2], None),
        (torch.ones(2, 32), torch.ones(32), torch.ones(3, 32)),
        (torch.ones(2, 32), torch.ones(32), torch.ones(2, 32).half()),
        (torch.ones(2, 32), torch.ones(32), torch.ones(32, 2).T),
    ],
    ids=["size", "dimensions", "columns", "weight", "spread weight", "rows of out", "dtype of out", "columns of out"],
)
def test_what_does_not_fit_is_refused(x, weight, out):
    with pytest.raises(ValueError):
        rms_norm(x, weight, EPS, out)
    if out is not None:
        with pytest.raises(ValueError):
            add_rms_norm(x, out, weight, EPS)
