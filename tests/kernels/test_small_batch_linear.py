"""The four functions against fp64, each regime and configuration; what no shape may touch stays as it was."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from isthmus.kernels.fragment_linear import FragmentConfig, launch_fragment
from isthmus.kernels.gemv_linear import GemvConfig, launch_gemv
from isthmus.kernels.linear_parts import LinearCall
from isthmus.kernels.small_batch_linear import (
    add_linear,
    norm_gated_linear,
    norm_head,
    norm_linear,
    prefers_small_batch,
)

EPS = 1e-5
NAN = float("nan")
TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 6e-3}
"""Of ‖out − ref‖ / ‖ref‖, by the output's dtype: one rounding of a single element, which Triton's interpreter makes
towards zero. fp32 outputs come from x · norm_weight in bf16."""
KINDS = ["norm", "norm_bias", "gated", "add", "add_bias", "add_elsewhere", "head"]


@dataclass
class Problem:
    kind: str
    x: torch.Tensor
    norm_weight: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor
    residual: torch.Tensor

    def expected(self):
        x = self.x.double()
        if not self.kind.startswith("add"):
            x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS) * self.norm_weight.double()
        y = torch.cat([x @ rows.double().T for rows in self.w.split(1024)], dim=-1)  # In little memory.
        if self.kind.endswith("bias"):
            y = y + self.bias.double()
        if self.kind == "gated":
            gate, up = y.chunk(2, dim=-1)
            y = gate * torch.sigmoid(gate) * up
        return y + self.residual.double() if self.kind.startswith("add") else y

    def call(self):
        """As the kernels take it, into an output that is NaN unless it is the residual, too, between rows that are not
        its own."""
        norm = {} if self.kind.startswith("add") else {"norm_weight": self.norm_weight, "eps": EPS}
        out, rows = guarded(self.residual, torch.float32 if self.kind == "head" else self.x.dtype)
        residual = out if self.kind in ("add", "add_bias") else None
        if residual is None:
            out.fill_(NAN)
        if self.kind == "add_elsewhere":
            residual = self.residual
        bias = self.bias if self.kind.endswith("bias") else None
        return LinearCall(self.x, self.w, out, **norm, bias=bias, gated=self.kind == "gated", residual=residual), rows


def guarded(residual, dtype):
    """(a copy of `residual`, the buffer it lies in with 77 before and after)."""
    rows = torch.full((residual.numel() + 256,), 77.0, dtype=dtype, device=residual.device)
    out = rows[128:-128].view(residual.shape)
    out.copy_(residual)
    return out, rows


def problem(kind, m, n, k, device, dtype=torch.bfloat16, seed=0):
    """N outputs. Weights are a middle part of a larger tensor whose other rows are NaN."""
    generator = torch.Generator(device).manual_seed(seed)

    def random(*shape, scale=1.0):
        inside = torch.full((shape[0] + 16, *shape[1:]), NAN, device=device, dtype=dtype)
        return inside[8:-8].normal_(0.0, scale, generator=generator)

    num_rows = 2 * n if kind == "gated" else n
    return Problem(
        kind,
        x=random(m, k, scale=3.0),
        norm_weight=random(k, scale=0.3),
        w=random(num_rows, k, scale=k**-0.5),
        bias=random(num_rows),
        residual=random(m, n),
    )


def error(out, expected):
    return ((out.double() - expected).norm() / expected.norm()).item()


def check(made, launch: Callable[[LinearCall], object]):
    call, rows = made.call()
    launch(call)
    assert error(call.out, made.expected()) < TOLERANCE[call.out.dtype]
    assert rows[:128].eq(77).all()
    assert rows[-128:].eq(77).all()


def check_gemv(kind, m, n, k, config, device, dtype=torch.bfloat16, pdl=False):
    check(problem(kind, m, n, k, device, dtype), lambda call: launch_gemv(call, config, pdl=pdl))


def check_fragment(kind, m, n, k, config, device, dtype=torch.bfloat16, pdl=False):
    check(problem(kind, m, n, k, device, dtype), lambda call: launch_fragment(call, config, pdl=pdl))


def check_functions(m, n, k, device, dtype=torch.bfloat16, kinds=KINDS):
    """The public face, on its own tiles."""
    for kind in kinds:
        made = problem(kind, m, n, k, device, dtype)
        out = RUN[kind](made)
        assert out.dtype == (torch.float32 if kind == "head" else dtype)
        assert error(out, made.expected()) < TOLERANCE[out.dtype], kind


RUN = {
    "norm": lambda p: norm_linear(p.x, p.norm_weight, EPS, p.w),
    "norm_bias": lambda p: norm_linear(p.x, p.norm_weight, EPS, p.w, p.bias),
    "gated": lambda p: norm_gated_linear(p.x, p.norm_weight, EPS, p.w),
    "add": lambda p: add_linear(p.x, p.w, p.residual.clone()),
    "add_bias": lambda p: add_linear(p.x, p.w, p.residual.clone(), p.bias),
    "add_elsewhere": lambda p: add_linear(p.x, p.w, p.residual, out=torch.empty_like(p.residual)),
    "head": lambda p: norm_head(p.x, p.norm_weight, EPS, p.w),
}


GEMV_SHAPES = [  # M, N, K, config
    pytest.param(1, 5, 40, GemvConfig(4, 64, 1), id="1x5x40"),
    pytest.param(2, 8, 128, GemvConfig(8, 64, 2), id="2x8x128"),
    pytest.param(3, 3, 200, GemvConfig(2, 64, 1), id="3x3x200"),
    pytest.param(4, 7, 72, GemvConfig(4, 128, 4), id="4x7x72"),
    pytest.param(1, 1, 8, GemvConfig(2, 16, 1), id="1x1x8"),
]
FRAGMENT_SHAPES = [
    pytest.param(5, 20, 96, FragmentConfig(16, 1, 2), id="5x20x96"),
    pytest.param(8, 40, 200, FragmentConfig(32, 2, 1), id="8x40x200"),
    pytest.param(16, 9, 136, FragmentConfig(16, 1, 4), id="16x9x136"),
    pytest.param(13, 33, 256, FragmentConfig(64, 2, 4), id="13x33x256, one step"),
    pytest.param(9, 16, 128, FragmentConfig(16, 1, 2), id="9x16x128, whole steps"),
    pytest.param(6, 50, 72, FragmentConfig(32, 1, 2, row_warps=2), id="6x50x72, warps of rows"),
    pytest.param(3, 70, 168, FragmentConfig(64, 1, 4, row_warps=2), id="3x70x168, warps of rows and columns"),
    pytest.param(1, 1, 8, FragmentConfig(16, 1, 1), id="1x1x8"),
]


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n", "k", "config"), GEMV_SHAPES)
def test_gemv_in_the_interpreter(kind, m, n, k, config):
    check_gemv(kind, m, n, k, config, "cpu", pdl=True)  # Means nothing there, and must be allowed.


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n", "k", "config"), FRAGMENT_SHAPES)
def test_fragment_in_the_interpreter(kind, m, n, k, config):
    check_fragment(kind, m, n, k, config, "cpu", torch.float16, pdl=True)


@pytest.mark.interpreter
@pytest.mark.parametrize("m", [2, 6, 16])
def test_functions_in_the_interpreter(m):
    check_functions(m, 12, 64, "cpu", torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 11, 16])
def test_functions_on_a_gpu(m):
    check_functions(m, 77, 136, "cuda", kinds=["norm_bias", "gated", "add", "add_elsewhere"])


REAL_CASES = [  # M, kind, N, K of Llama-3.1-8B, with as much of its head as takes the head's tiles, and of SmolLM2-135M
    *((m, kind, n, k) for m in (1, 8, 16) for kind, n, k in [("gated", 14336, 4096), ("add", 4096, 14336)]),
    *((m, "add", 576, 1536) for m in (1, 8, 16)),
    (8, "norm", 6144, 4096),
    (8, "head", 16400, 4096),
    (8, "norm", 960, 576),
    (8, "head", 16400, 576),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("m", "kind", "n", "k"), REAL_CASES)
def test_shapes_of_models_on_a_gpu(m, kind, n, k):
    check_functions(m, n, k, "cuda", kinds=[kind])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["norm_bias", "gated"])
@pytest.mark.parametrize(
    "config", [FragmentConfig(32, 2, 8, early=True), FragmentConfig(64, 2, 8, row_warps=4)], ids=str
)
def test_fragment_tiles_on_a_gpu(kind, config):
    check_fragment(kind, 11, 1000, 2056, config, "cuda", pdl=True)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 77])
def test_columns_that_do_not_align(k):
    check_fragment("norm_bias", 6, 50, k, FragmentConfig(16, 2, 4), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("m", [3, 12])
def test_fp16_on_a_gpu(m):
    check_functions(m, 520, 1032, "cuda", torch.float16, kinds=["norm", "add_bias"])


@pytest.mark.gpu
@pytest.mark.parametrize(("m", "pdl"), [(1, True), (8, True), (16, True), (8, False)])
def test_a_chain_in_a_graph_equals_the_chain_in_fp64(m, pdl):
    """Each call reads what the one before wrote: a wait that is missing shows, in one of 40 replays."""
    made = [problem("gated", m, 2048, 1024, "cuda", seed=1), problem("add", m, 1024, 2048, "cuda", seed=2)]
    x, middle, out = made[0].x, torch.empty(m, 2048, dtype=torch.bfloat16, device="cuda"), torch.empty_like(made[0].x)
    expected = _chain_in_fp64(made, x)

    def run():
        torch.mul(x, 1, out=out)
        for _ in range(8):
            norm_gated_linear(out, made[0].norm_weight, EPS, made[0].w, out=middle, pdl=pdl)
            add_linear(middle, made[1].w, out, pdl=pdl)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(40):
        out.fill_(NAN)
        middle.fill_(NAN)
        graph.replay()
        assert error(out, expected) < 2e-2


def _chain_in_fp64(made, x):
    gated, add = made
    y = x.double()
    for _ in range(8):
        normed = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + EPS) * gated.norm_weight.double()
        gate, up = (normed @ gated.w.double().T).chunk(2, dim=-1)
        y = y + (gate * torch.sigmoid(gate) * up) @ add.w.double().T
    return y


@pytest.mark.parametrize("kind", KINDS)
def test_references_equal_fp64(kind):
    made = problem(kind, 3, 10, 24, "cpu")
    out = RUN[kind](made)
    assert error(out, made.expected()) < TOLERANCE[out.dtype]


def test_out_is_written_and_returned():
    made = problem("norm", 2, 4, 16, "cpu")
    out = torch.full((2, 4), NAN, dtype=torch.bfloat16)
    assert norm_linear(made.x, made.norm_weight, EPS, made.w, out=out) is out
    assert not out.isnan().any()
    assert add_linear(made.x, made.w, made.residual) is made.residual


def test_no_rows_are_no_work():
    made = problem("norm", 0, 4, 16, "cpu")
    assert norm_linear(made.x, made.norm_weight, EPS, made.w).shape == (0, 4)


MISTAKES = {
    "17 rows": (ValueError, {"x": torch.zeros(17, 16, dtype=torch.bfloat16)}),
    "another K": (ValueError, {"x": torch.zeros(2, 24, dtype=torch.bfloat16)}),
    "norm of another K": (ValueError, {"norm_weight": torch.zeros(8, dtype=torch.bfloat16)}),
    "x with holes": (ValueError, {"x": torch.zeros(2, 32, dtype=torch.bfloat16)[:, ::2]}),
    "transposed weight": (ValueError, {"w": torch.zeros(16, 4, dtype=torch.bfloat16).T}),
    "out of another shape": (ValueError, {"out": torch.zeros(2, 5, dtype=torch.bfloat16)}),
    "out of another dtype": (TypeError, {"out": torch.zeros(2, 4, dtype=torch.float16)}),
    "fp64": (TypeError, {"x": torch.zeros(2, 16, dtype=torch.float64)}),
    "mixed dtypes": (TypeError, {"w": torch.zeros(4, 16, dtype=torch.float16)}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    error_type, change = MISTAKES[mistake]
    made = problem("norm", 2, 4, 16, "cpu")
    arguments = {"x": made.x, "norm_weight": made.norm_weight, "w": made.w, "out": None} | change
    with pytest.raises(error_type):
        norm_linear(eps=EPS, **arguments)


def test_a_gated_weight_has_two_halves():
    made = problem("norm", 2, 5, 16, "cpu")
    with pytest.raises(ValueError, match="gated"):
        norm_gated_linear(made.x, made.norm_weight, EPS, made.w)


def test_logits_are_fp32():
    made = problem("head", 2, 4, 16, "cpu")
    with pytest.raises(TypeError, match="fp32"):
        norm_head(made.x, made.norm_weight, EPS, made.w, out=torch.zeros(2, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize(("m", "prefers"), [(0, False), (1, True), (4, True), (5, False), (16, False)])
def test_large_layers_of_more_rows_go_elsewhere(m, prefers):
    assert prefers_small_batch(m, 4096, 4096, torch.bfloat16) == prefers
    assert not prefers_small_batch(m, 4096, 4096, torch.float32)


@pytest.mark.parametrize(("m", "prefers"), [(8, True), (16, True), (17, False)])
def test_small_layers_of_more_rows_do_not(m, prefers):
    assert prefers_small_batch(m, 960, 576, torch.bfloat16) == prefers
