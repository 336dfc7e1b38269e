"""Packed layers compute what F.linear does; a row's result does not depend on how many rows there are."""

import pytest
import torch
import torch.nn.functional as F
from isthmus.engine import linear
from isthmus.engine.linear import MklLinear, OneDnnLinear, PlainLinear, make_linear

SHAPES = [(96, 64), (128, 64), (64, 96), (192, 64), (320, 64), (8, 24), (576, 576), (1000, 130), (33, 577)]
has_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without MKL")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_f_linear(shape: tuple[int, int], has_bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=dtype)
    bias = torch.randn(shape[0], dtype=dtype) if has_bias else None
    layer = make_linear(weight, bias)
    for num_rows in (1, 2, 5, 33):
        x = torch.randn(num_rows, shape[1], dtype=dtype)
        expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        tolerance = 1e-5 if dtype == torch.float32 else 8e-3
        torch.testing.assert_close(
            layer(x).double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


@has_mkl
@pytest.mark.parametrize("kind", [MklLinear, OneDnnLinear])
@pytest.mark.parametrize("shape", [*SHAPES, (576, 1536)], ids=str)
def test_rows_do_not_depend_on_their_number(shape: tuple[int, int], kind: type[MklLinear] | type[OneDnnLinear]) -> None:
    torch.manual_seed(0)
    layer, x = kind(torch.randn(shape), None), torch.randn(70, shape[1])
    whole = layer(x)
    for first, num_rows in ((0, 1), (41, 1), (3, 2), (60, 7), (16, 16), (6, 64)):
        assert torch.equal(layer(x[first : first + num_rows]), whole[first : first + num_rows]), (first, num_rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_input(dtype: torch.dtype) -> None:
    weight, wide = torch.randn(96, 64, dtype=dtype), torch.randn(5, 128, dtype=dtype)
    layer = make_linear(weight)
    assert torch.equal(layer(wide[:, :64]), layer(wide[:, :64].contiguous()))


@pytest.mark.parametrize("intel", [True, False])
def test_choice(intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "is_intel", lambda: intel)
    weight = torch.randn(8, 8)
    assert isinstance(make_linear(weight.to(torch.float16)), PlainLinear)
    if torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available():
        assert isinstance(make_linear(weight), MklLinear if intel else OneDnnLinear)
        assert isinstance(make_linear(weight.bfloat16()), OneDnnLinear if linear.has_bf16() else PlainLinear)


def test_bf16_without_a_processor_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN then refuses to pack such weights."""
    monkeypatch.setattr(linear, "has_bf16", lambda: False)
    assert isinstance(make_linear(torch.randn(8, 8, dtype=torch.bfloat16)), PlainLinear)


def test_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    weight, bias, x = torch.randn(9, 8), torch.randn(9), torch.randn(3, 8)
    layer = make_linear(weight, bias)
    assert isinstance(layer, PlainLinear)
    assert torch.equal(layer(x), F.linear(x, weight, bias))


@has_mkl
def test_a_pack_does_not_keep_the_weight() -> None:
    weight = torch.randn(256, 256)
    layer = MklLinear(weight, None)
    assert layer.shape_only.untyped_storage().nbytes() == 4
    assert weight.data_ptr() not in {value.data_ptr() for value in vars(layer).values() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided
